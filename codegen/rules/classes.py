"""The class of one rule: a `torch.optim.Optimizer` with the rule's equations.

In: a rule's motions for matrices, vectors and scalars. Out: the lines of its class and the helpers
they call. A rule that does the same to every shape has one method; else those that differ.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from nlc.codegen.names import identifier
from nlc.codegen.rules.body import dictionary
from nlc.codegen.rules.maps import write_reading
from nlc.codegen.rules.motion import MotionWriter
from nlc.codegen.rules.numbers import literal, number_of
from nlc.codegen.rules.start import states_of
from nlc.codegen.triton.steps import StepKernels
from nlc.codegen.writer import Writer, split_call

from nlc.ir.rule import RANKS, Every, Kind, Motion, OptimizerRule, flat
from nlc.ir.system import System
from nlc.source import Span

METHODS: dict[Kind, str] = {"matrix": "matrices", "vector": "vectors", "scalar": "scalars"}


@dataclass(frozen=True)
class RuleText:
    """The lines of a class and the library functions they call."""

    name: str
    lines: list[str]
    used: frozenset[str]
    # functions that read its memories, and kernels
    readings: tuple[list[str], ...] = ()
    fused: bool = False


def write_class(
    rule: OptimizerRule, system: System, name: str, with_kernels: bool = False
) -> RuleText:
    """Write the class of a rule, under a name."""
    where = _places(system)
    writers = {kind: MotionWriter(motion, where) for kind, motion in rule.motions.items()}
    moves = {kind: tuple(writer.move()) for kind, writer in writers.items()}
    starts = {kind: tuple(writer.start()) for kind, writer in writers.items()}
    first = writers["matrix"] if "matrix" in writers else next(iter(writers.values()))
    plain = (
        len(rule.motions) == 3
        and not first.keyed
        and len({*moves.values()}) == 1
        and not rule.as_rows
    )
    kernels, launches = StepKernels(identifier(rule.rule.name.lower())), {}
    if with_kernels and not first.asks:
        launches = {kind: tuple(writer.move(kernels)) for kind, writer in writers.items()}
    fused = bool(kernels.found)
    narrow = fused and not first.motion.evaluated and all(w.whole for w in writers.values())
    out = Writer()
    out.line(f"class {name}({'Fused' if fused else 'Rule'}):")
    with out.indent():
        _docstring(out, rule, where)
        _facts(out, rule, first, plain, narrow)
        _init(out, rule, _whole(first.motion))
        if any(len(text) > 1 or text[0].strip() != "return {}" for text in starts.values()):
            out.blank()
            _start(out, starts)
        if plain:
            out.blank()
            _method(out, "move", moves["matrix"], first.asks, "Move parameters of any shape.")
        else:
            _methods(out, moves, first.asks)
        if fused:
            _methods(out, launches, False, "launch_", " by kernels")
        if first.motion.evaluated is not None:
            out.blank()
            out.line("@staticmethod")
            out.line("def evaluated(at: Bucket) -> list[Tensor]:")
            with out.indent():
                out.docstring(["Give the values that are read outside training."])
            out.lines += first.evaluated()
    used = {name for writer in writers.values() for name in writer.used}
    maps = {name: form for writer in writers.values() for name, form in writer.readings.items()}
    readings = tuple(write_reading(name, form, used) for name, form in maps.items())
    if fused:
        readings += tuple(kernels.texts())
    return RuleText(name, out.lines, frozenset(used), readings, fused)


def _places(system: System) -> Callable[[Span], str]:
    """Say where a line stands: `spec.nl:16`, `rules.nl:9`."""
    form = "yaml" if system.source.name.endswith((".yaml", ".yml")) else "nl"

    def where(span: Span) -> str:
        if not span.text:
            return ""
        name = f"spec.{form}" if span.source is system.source else PurePath(span.source.name).name
        return f"{name}:{span.line}"

    return where


def _docstring(out: Writer, rule: OptimizerRule, where: Callable[[Span], str]) -> None:
    comments = [line.strip() for line in rule.rule.comments.above if line.strip()]
    lines = [part for line in comments for part in textwrap.wrap(line, out.room)]
    place = where(rule.rule.span)
    head = f"Rule {rule.rule.name} ({place})." if place else f"Rule {rule.rule.name}."
    out.docstring([head, *lines])
    out.blank()


def _facts(
    out: Writer, rule: OptimizerRule, writer: MotionWriter, plain: bool, narrow: bool
) -> None:
    """Write what the base class needs to know."""
    motion = writer.motion
    counted = ["grad.calls"] if writer.counts else []
    states = [*states_of(motion), *writer.sums, *counted]
    whole = sorted(_whole(motion))
    refused = [RANKS[kind] for kind in RANKS if kind not in rule.motions]
    refused = [axes for axes in refused if axes not in [RANKS[k] for k in rule.as_rows]]
    facts: list[tuple[str, str]] = []
    for name, values in (("states", states), ("numbers", writer.number_cells), ("whole", whole)):
        if values:
            facts.append((name, _tuple([f'"{value}"' for value in values])))
    for name, axes in (("refused", refused), ("rows", [RANKS[k] for k in rule.as_rows])):
        if axes:
            facts.append((name, _tuple([str(value) for value in axes])))
    flags = (
        ("shaped", not plain),
        ("asks", writer.asks),
        ("averaged", motion.evaluated is not None),
        ("keyed", writer.keyed),
        ("narrow", narrow),
    )
    facts += [(name, "True") for name, holds in flags if holds]
    for name, text in facts:
        out.line(f"{name} = {text}")
    if facts:
        out.blank()


def _whole(motion: Motion) -> set[str]:
    """Name the arguments that count steps."""
    found = [a for a in flat(motion.actions) if isinstance(a, Every)]
    return {a.word for a in found if a.count.op == "param"}


def _tuple(items: list[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _init(out: Writer, rule: OptimizerRule, whole: set[str]) -> None:
    """Write the constructor: the rule's arguments with their defaults."""
    words, later = ["self", "params: Any"], []
    optional = False
    for name, default in rule.defaults:
        word = identifier(name)
        kind = "int" if name in whole else "float"
        if default is None:
            # Python wants what must be given in front of what need not be
            words.append(f"{word}: {kind}" if not optional else f"*, {word}: {kind}")
        elif default.op == "const":
            words.append(f"{word}: {kind} = {literal(default.attr('value')).text}")
            optional = True
        else:
            words.append(f"{word}: {kind} | None = None")
            later.append((word, default))
            optional = True
    words = _keyword_only(words)
    for line in split_call("def __init__(", words, ") -> None:", out.room):
        out.line(line)
    with out.indent():
        for word, default in later:
            text = number_of(default, identifier).text
            out.line(f"{word} = {text} if {word} is None else {word}")
        pairs = [f'"{name}": {identifier(name)}' for name, _ in rule.defaults]
        dictionary(out, "defaults = ", pairs)
        out.line("super().__init__(params, defaults)")


def _keyword_only(words: list[str]) -> list[str]:
    """Let `*` stand once, where the first argument that must be named does."""
    found, seen = [], False
    for word in words:
        if word.startswith("*, ") and seen:
            word = word.removeprefix("*, ")
        seen = seen or word.startswith("*, ")
        found.append(word)
    return found


def _start(out: Writer, starts: dict[Kind, tuple[str, ...]]) -> None:
    out.line("@staticmethod")
    out.line("def start(w: Tensor, axes: int) -> dict[str, Any]:")
    with out.indent():
        out.docstring(["Make the states of a parameter."])
    if len({*starts.values()}) == 1:
        out.lines += next(iter(starts.values()))
        return
    kinds = list(starts)
    for kind in kinds[:-1]:
        out.line(f"    if axes == {RANKS[kind]}:")
        out.lines += [f"    {line}" for line in starts[kind]]
    out.lines += starts[kinds[-1]]


def _methods(
    out: Writer,
    moves: dict[Kind, tuple[str, ...]],
    asks: bool,
    prefix: str = "",
    how: str = "",
) -> None:
    written: dict[tuple[str, ...], str] = {}
    for kind, lines in moves.items():
        name = METHODS[kind]
        out.blank()
        if lines in written:
            out.line(f"{prefix}{name} = {prefix}{written[lines]}")
            continue
        written[lines] = name
        _method(out, prefix + name, lines, asks, f"Move {name}{how or ' of one shape'}.")


def _method(out: Writer, name: str, lines: tuple[str, ...], asks: bool, about: str) -> None:
    out.line("@staticmethod")
    out.line(f"def {name}(at: Bucket) -> {'Points' if asks else 'None'}:")
    with out.indent():
        out.docstring([about])
    out.lines += lines
