"""Python names for what a spec names.

In: names of the language (letters of any script, digits, underscores). Out: names that are valid
in Python, clash with nothing and pass the linter.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from nlc.codegen.library_source import library_names

from nlc.ir.system import System

# what the emitted file itself uses, and letters that linters refuse
TAKEN = frozenset({
    "torch", "nn", "F", "math", "Tensor", "Any", "self", "state", "after", "l", "O", "I",
    "annotations", "device", "dtype", "super", "NamedTuple", "kernels", "ahead",
})  # fmt: skip


def identifier(name: str) -> str:
    """Make a valid name: dots become underscores, clashes get one behind.

    >>> identifier("W_q.weight"), identifier("lambda"), identifier("l")
    ('W_q_weight', 'lambda_', 'l_')
    """
    text = re.sub(r"\W", "_", name)
    text = text if text and not text[0].isdigit() else f"_{text}"
    clash = keyword.iskeyword(text) or keyword.issoftkeyword(text) or text in TAKEN
    return f"{text}_" if clash or text in dir(builtins) or text in library_names() else text


def class_name(*names: str) -> str:
    """Join names as a class is called.

    >>> class_name("gated_mixer", "M")
    'GatedMixerM'
    """
    words = [word for name in names for word in re.split(r"[_\W]+", name) if word]
    text = "".join(word[0].upper() + word[1:] for word in words)
    return text if text and not text[0].isdigit() else f"Block{text}"


def class_names(system: System) -> dict[tuple[str, ...], str]:
    """Name the classes of blocks, by `(block,)`, and of memories, by `(block, memory)`.

    No two are called alike, and none like the model, its passes or what the file imports.
    """
    found: dict[tuple[str, ...], str] = {}
    for block in system.blocks:
        for words in [(block.name,), *((block.name, m.name) for m in block.memories)]:
            found[words] = free_class_name(class_name(*words), found.values())
    return found


def free_class_name(base: str, used: Collection[str]) -> str:
    """Give a class a name that no other has, and nothing that the file imports or makes."""
    known = {*TAKEN, *dir(builtins), *keyword.kwlist, *library_names(), *used}
    name, count = base, 0
    while name in known or re.fullmatch(r"Model(Repeat\d*)*", name):
        count += 1
        name = f"{base}{'Block' if count == 1 else count}"
    return name


@dataclass
class Names:
    """Names in use within one function."""

    used: set[str] = field(default_factory=set)

    def fresh(self, wanted: str) -> str:
        """Return the name, or the first of name_1, name_2, ... that is free, and take it."""
        base = identifier(wanted)
        name, count = base, 0
        while name in self.used:
            count += 1
            name = f"{base}_{count}"
        self.used.add(name)
        return name
