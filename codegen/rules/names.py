"""Names of emitted optimizers: what the file itself uses, and classes for rules.

In: rules. Out: the class of each; names that no rule's own may take.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Sequence

from nlc.codegen.library_source import library_names
from nlc.codegen.names import class_name

from nlc.ir.rule import OptimizerRule

# what every emitted file has, in this order
ALWAYS = ("Bucket", "Rule", "Watching", "own_axes", "pieces", "dense", "put", "placed", "wide")
LEVELS = ("Levels", "Nested", "grouped")
# what files with kernels have
STEPS = ("Fused", "fits", "rooms", "launch", "chunks_of", "place", "entries")
# what the head of the file brings in
IMPORTED = (
    "Any", "Callable", "F", "Generator", "Iterable", "Iterator", "Points", "Tensor",
    "TorchFunctionMode", "chain", "math", "nn", "torch", "triton", "tl", "lru_cache", "TYPES",
    "BLOCK", "INTERPRETED", "Sequence",
)  # fmt: skip
# what only some rules need
SOMETIMES = (
    "drawn", "normal", "slopes", "parts", "part", "hold", "joined", "times", "beside", "chosen",
    "orthogonal",
)  # fmt: skip
# names that the methods of a rule use themselves
OWN = ("at", "w", "grad", "calls", "lead", "name", "objective")
CALLS = "grad.calls"


def taken() -> set[str]:
    """Names that a state or an argument cannot have in a method."""
    return {*OWN, *ALWAYS, *LEVELS, *STEPS, *SOMETIMES, *IMPORTED, *library_names()}


def rule_classes(rules: Sequence[OptimizerRule]) -> dict[str, str]:
    """Name the class of each rule: as the rule is called, where the file has no such name."""
    taken = {*ALWAYS, *LEVELS, *STEPS, *IMPORTED, *dir(builtins)}
    found: dict[str, str] = {}
    for rule in rules:
        name = class_name(rule.rule.name)
        while name in taken or keyword.iskeyword(name):
            name = f"{name}Rule"
        taken.add(name)
        found[rule.rule.name] = name
    return found
