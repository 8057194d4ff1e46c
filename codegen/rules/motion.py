"""The methods of an emitted rule: its equations as statements over lists of tensors.

In: a motion. Out: the text of `start`, which makes the states of one parameter, of the method that
moves parameters, and of the one that gives their value outside training. Each equation stands as a
comment above its statements, with its line in the spec.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.rules.body import BodyWriter, dictionary
from nlc.codegen.rules.lists import ListWriter
from nlc.codegen.rules.names import CALLS, taken
from nlc.codegen.rules.numbers import UNARY, number_names
from nlc.codegen.rules.start import SIZES, start_entries
from nlc.codegen.triton.steps import StepKernels, StepWriter
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import Expr, postorder
from nlc.ir.rule import Ask, Every, Motion, Set, expressions, flat
from nlc.ir.system import Map
from nlc.source import Span


@dataclass
class MotionWriter:
    """Writes one motion; `where` names the file and line of a span."""

    motion: Motion
    where: Callable[[Span], str]
    used: set[str] = field(default_factory=set)
    readings: dict[str, Map] = field(default_factory=dict)
    # whether the method with kernels is nothing but launches and plain numbers
    whole: bool = False

    def __post_init__(self) -> None:
        self.numbers = number_names(self.motion)
        nodes = list(postorder([*expressions(self.motion.actions), *self._evaluated()]))
        self.read = {n.attr("name") for n in nodes if n.op == "stream"}
        self.given = {n.attr("name") for n in nodes if n.op == "param"}
        actions = flat(self.motion.actions)
        self.given |= {n for a in actions if isinstance(a, Every) and a.count.op == "param"
                       for n in [a.word]}  # fmt: skip
        self.asks = any(isinstance(a, Ask) for a in actions)
        self.counts = any(isinstance(a, Every) for a in actions)
        self.keyed = "key" in self.read
        self.sums = sorted(n for n in self.read if n.startswith("grad.every."))

    def _evaluated(self) -> list[Expr]:
        return [] if self.motion.evaluated is None else [self.motion.evaluated]

    @property
    def number_cells(self) -> list[str]:
        """The states that are plain numbers, the same for all that move together."""
        names = [c.name for c in self.motion.cells if c.name in self.numbers]
        return [*names, *([CALLS] if self.counts else [])]

    def start(self) -> list[str]:
        """Write the body of `start(w)`: the states of one parameter."""
        out = Writer(depth=2)
        rank = len(self.motion.shape)
        entries = start_entries(self.motion, self.numbers, self.used)
        entries += [f'"{name}": torch.zeros_like(w)' for name in self.sums]
        entries += [f'"{CALLS}": 0'] if self.counts else []
        text = "\n".join(entries)
        if "lead" in text:
            out.line(f"lead = w.shape[: w.ndim - {rank}]" if rank else "lead = w.shape")
        for place, name in enumerate(SIZES, 1):
            if re.search(rf"[ (]{name}\b", text):
                out.line(f"{name} = w.shape[-{place}]")
        dictionary(out, "return ", entries)
        return out.lines

    # ---- moving ----------------------------------------------------------------------------

    def move(self, kernels: StepKernels | None = None) -> list[str]:
        """Write the body of the method that moves parameters, with kernels or without."""
        lists = self._lists()
        moved = {a.target for a in flat(self.motion.actions) if isinstance(a, Set)}
        self._take(lists, self.given, self.read | moved | ({"grad"} if self.sums else set()))
        if self.keyed:
            lists.out.line(f"{lists.text('key')} = at.keys()")
        if self.counts:
            lists.out.line("calls = at.count()")
        for name in self.sums:
            lists.call("add_", lists.text(name), "grad")
        if kernels is None:
            BodyWriter(self.motion, lists, self.where).walk(self.motion.actions)
        else:
            body = StepWriter(self.motion, lists, self.where, kernels=kernels)
            body.walk(self.motion.actions)
            self.whole = body.whole and not self.sums
        for name in self.sums:
            self._clear(lists, name)
        kept = [c.name for c in self.motion.cells if c.name in self.numbers and c.name in moved]
        if kept:
            pairs = ", ".join(f'"{name}": {lists.text(name)}' for name in kept)
            lists.out.line(f"at.keep({{{pairs}}})")
        return lists.out.lines

    def evaluated(self) -> list[str]:
        """Write the body of the method that gives the values read outside training."""
        value = self.motion.evaluated
        assert value is not None
        nodes = list(postorder([value]))
        lists = self._lists()
        self._take(
            lists,
            {n.attr("name") for n in nodes if n.op == "param"},
            {n.attr("name") for n in nodes if n.op == "stream"},
        )
        lists.begin(value)
        lists.out.line(f"return {lists.tensors(value).name}")
        return lists.out.lines

    def _lists(self) -> ListWriter:
        names = Names(taken())
        texts = {"self": "w", "grad": "grad"}
        rank = len(self.motion.shape)
        return ListWriter(
            Writer(depth=2), names, self.numbers, self.used, rank, self.motion.rule.name,
            self.motion.parts, self.readings, texts,
        )  # fmt: skip

    def _take(self, lists: ListWriter, given: set[str], read: set[str]) -> None:
        """Write the lines that take arguments, lists and states out of `at`."""
        out, motion = lists.out, self.motion
        # names of the rule come first: what the method makes itself gives way to them
        for name in (*motion.arguments, *(c.name for c in motion.cells)):
            if name in given | read:
                lists.text(motion.parts.get(name, (name, ""))[0])
        _unpack(lists, [a for a in motion.arguments if a in given], "at.given")
        rank = len(motion.shape)
        for place, name in enumerate(("in", "out"), 1):
            if name in given:
                size = f"at.w[0].shape[-{place}]" if rank >= place else "1"
                out.line(f"{lists.text(name)} = {size}")
        own = [lists.text(name) for name in ("self", "grad") if name in read]
        if own:
            out.line(f"{', '.join(own)} = {', '.join(f'at.{name}' for name in own)}")
        cells = [c.name for c in motion.cells if c.name in read]
        states = [motion.parts.get(name, (name, ""))[0] for name in cells]
        states = list(dict.fromkeys(states))
        _unpack(lists, [n for n in states if n not in self.numbers], "at.lists")
        _unpack(lists, [n for n in states if n in self.numbers], "at.counts")
        _unpack(lists, [n for n in self.sums if n in read], "at.lists")

    def _clear(self, lists: ListWriter, name: str) -> None:
        """Write the lines that begin a sum of gradients anew after its last call."""
        count = next(
            a.count for a in flat(self.motion.actions)
            if isinstance(a, Every) and f"grad.every.{a.word}" == name
        )  # fmt: skip
        lists.out.line(f"if calls % {lists.number(count).within(UNARY)} == 0:")
        with lists.out.indent():
            lists.call("zero_", lists.text(name))


def _unpack(lists: ListWriter, names: list[str], method: str) -> None:
    """Write `a, b = method("a", "b")`."""
    if not names:
        return
    head = ", ".join(map(lists.text, names))
    head = f"({head},)" if len(names) == 1 else head
    words = [f'"{name}"' for name in names]
    for line in split_call(f"{head} = {method}(", words, ")", lists.out.room):
        lists.out.line(line)
