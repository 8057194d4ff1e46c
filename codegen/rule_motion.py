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
from nlc.codegen.rule_elements import Site
from nlc.codegen.rule_lists import ListWriter, alone
from nlc.codegen.rule_numbers import UNARY, literal, number_names
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import Expr, postorder
from nlc.ir.rule import (
    Action,
    Ask,
    Cell,
    Every,
    Loop,
    Motion,
    Set,
    When,
    expressions,
    flat,
)  # fmt: skip
from nlc.source import Span

# names that the methods use themselves
OWN = ("at", "w", "grad", "calls", "held", "lead", "like")
CALLS = "grad.calls"


@dataclass
class MotionWriter:
    """Writes one motion; `where` names the file and line of a span."""

    motion: Motion
    where: Callable[[Span], str]
    used: set[str] = field(default_factory=set)

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
        self.sums = sorted(n for n in self.read if n.startswith("grad.every."))

    def _evaluated(self) -> list[Expr]:
        return [] if self.motion.evaluated is None else [self.motion.evaluated]

    @property
    def number_cells(self) -> list[str]:
        """The states that are plain numbers, the same for all that move together."""
        names = [c.name for c in self.motion.cells if c.name in self.numbers]
        return [*names, *([CALLS] if self.counts else [])]

    # ---- the states at the start -----------------------------------------------------------

    def start(self) -> list[str]:
        """Write the body of `start(w)`: the states of one parameter."""
        out = Writer(depth=2)
        rank = len(self.motion.shape)
        entries = [f'"{cell.name}": {self._start_of(cell)}' for cell in self.motion.cells]
        entries += [f'"{name}": torch.zeros_like(w)' for name in self.sums]
        entries += [f'"{CALLS}": 0'] if self.counts else []
        if any("lead" in entry for entry in entries):
            out.line(f"lead = w.shape[: w.ndim - {rank}]" if rank else "lead = w.shape")
        dictionary(out, "return ", entries)
        return out.lines

    def _start_of(self, cell: Cell) -> str:
        """Write the value of a state at the first call."""
        if cell.start.op == "const":
            value = literal(cell.start.attr("value"))
            if cell.name in self.numbers:
                return value.text
            if cell.like:
                return f"torch.full_like(w, {value.text})" if value.value else "torch.zeros_like(w)"
            axes = ", ".join(Site("w").size(axis) for axis in cell.shape)
            whole = f"(*lead, {axes})" if axes else "lead"
            if value.value == 0:
                return f"w.new_zeros({whole})"
            return f"w.new_full({whole}, {value.text})"
        text = alone(cell.start, "w", self.used)
        if text == "w":
            return "w.clone()"
        return f"({text}).expand_as(w).clone()" if cell.like else f"({text}).clone()"

    # ---- moving ----------------------------------------------------------------------------

    def move(self) -> list[str]:
        """Write the body of the method that moves parameters."""
        lists = self._lists()
        moved = {a.target for a in flat(self.motion.actions) if isinstance(a, Set)}
        self._take(lists, self.given, self.read | moved | ({"grad"} if self.sums else set()))
        if self.counts:
            lists.out.line("calls = at.count()")
        for name in self.sums:
            lists.call("add_", lists.text(name), "grad")
        _Body(self, lists).walk(self.motion.actions)
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
        lists.uses[value] += 1
        lists.out.line(f"return {lists.tensors(value).name}")
        return lists.out.lines

    def _lists(self) -> ListWriter:
        names = Names({*OWN, "math"})
        texts = {"self": "w", "grad": "grad"}
        rank = len(self.motion.shape)
        return ListWriter(Writer(depth=2), names, self.numbers, self.used, rank, texts)

    def _take(self, lists: ListWriter, given: set[str], read: set[str]) -> None:
        """Write the lines that take arguments, lists and states out of `at`."""
        out, motion = lists.out, self.motion
        # names of the rule come first: what the method makes itself gives way to them
        for name in (*motion.arguments, *(c.name for c in motion.cells)):
            if name in given | read:
                lists.text(name)
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
        _unpack(lists, [n for n in cells if n not in self.numbers], "at.lists")
        _unpack(lists, [n for n in cells if n in self.numbers], "at.counts")
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


@dataclass
class _Body:
    """Walks the actions of a motion."""

    writer: MotionWriter
    lists: ListWriter
    said: str = ""

    @property
    def out(self) -> Writer:
        return self.lists.out

    def walk(self, actions: tuple[Action, ...]) -> None:
        """Write actions in order."""
        for action in actions:
            match action:
                case Set():
                    self._say(action.text, action.span)
                    self._set(action)
                case Ask(target=target, point=point, span=span):
                    self._say("the gradient with the parameters at another value", span)
                    self.lists.begin(point)
                    self.lists.uses[point] += 1
                    where = self.lists.tensors(point).name
                    self.out.line(f"{self.lists.text(target)} = yield {where}")
                case When():
                    self._when(action)
                case Every(count=count, body=body, text=text, span=span):
                    self._say(text, span)
                    number = self.lists.number(count).within(UNARY)
                    self.out.line(f"if calls % {number} == 0:")
                    with self.out.indent():
                        self.walk(body)
                case Loop(count=count, body=body, span=span):
                    self._say(f"repeat {count}", span)
                    self.out.line(f"for _ in range({count}):")
                    with self.out.indent():
                        self.walk(body)

    def _say(self, text: str, span: Span) -> None:
        if not text:
            return
        words = re.sub(r"\s+", " ", text)
        place = self.writer.where(span)
        line = f"{words}   ({place})" if place else words
        if line != self.said:
            self.out.comment(line)
            self.said = line

    def _set(self, action: Set) -> None:
        motion, shape = self.writer.motion, action.value.shape
        if action.target == "self":
            shape = motion.shape
        elif not self._is_local(action.target):
            shape = motion.cell(action.target).shape
        self.lists.shapes[action.target] = shape
        self.lists.set(action.target, action.value, shape, self._is_local(action.target))

    def _when(self, action: When) -> None:
        lists, out = self.lists, self.out
        self._say(action.text, action.span)
        if lists.is_number(action.condition):
            out.line(f"if {lists.number(action.condition).text}:")
            with out.indent():
                self.walk(action.body)
            return
        # each copy decides for itself: both values are made, and one is chosen
        lists.begin(action.condition)
        holds = lists.names.fresh("holds")
        lists.assign_list(holds, lists.truths(action.condition))
        inside = [a for a in flat(action.body) if isinstance(a, Set | Ask)]
        changed = [n for n in dict.fromkeys(a.target for a in inside) if n in lists.texts]
        before = {}
        for name in changed:
            text = lists.text(name)
            before[name] = lists.names.fresh(f"{text}_before")
            item = lists.item(text)
            lists.assign_list(before[name], (f"{item}.clone()", f"for {item} in {text}"))
        self.walk(action.body)
        for name in changed:
            self._choose(name, holds, before[name])

    def _choose(self, name: str, holds: str, before: str) -> None:
        lists, text = self.lists, self.lists.text(name)
        rank = len(lists.shapes[name]) if name in lists.shapes else len(self.writer.motion.shape)
        lists.used.add("chosen")
        value = f"chosen({holds}, {text}, {before}, {rank})"
        if self._is_local(name):
            self.out.line(f"{text} = {value}")
        else:
            lists.call("copy_", text, value)

    def _is_local(self, name: str) -> bool:
        return name != "self" and all(c.name != name for c in self.writer.motion.cells)


def dictionary(out: Writer, head: str, pairs: list[str]) -> None:
    """Write a dict on one line, or its entries on a line each."""
    whole = f"{head}{{{', '.join(pairs)}}}"
    if len(whole) <= out.room:
        out.line(whole)
        return
    out.line(f"{head}{{")
    with out.indent():
        for pair in pairs:
            out.line(f"{pair},")
    out.line("}")


def _unpack(lists: ListWriter, names: list[str], method: str) -> None:
    """Write `a, b = method("a", "b")`."""
    if not names:
        return
    head = ", ".join(map(lists.text, names))
    head = f"({head},)" if len(names) == 1 else head
    words = [f'"{name}"' for name in names]
    for line in split_call(f"{head} = {method}(", words, ")", lists.out.room):
        lists.out.line(line)
