"""The equations of a rule as statements over lists of tensors, each under the line of the spec.

In: the actions of a motion, and how its names are known. Out: statements. What has several parts, a
memory inside the rule, is a list of dicts, and an equation over it a loop over the parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nlc.codegen.names import Names
from nlc.codegen.rules.lists import ListWriter
from nlc.codegen.rules.numbers import UNARY
from nlc.codegen.writer import Writer, split_call

from nlc.ir.rule import Action, Ask, Every, Loop, Motion, Set, Slope, When, flat
from nlc.source import Span


@dataclass
class BodyWriter:
    """Writes the actions of a motion in order; `where` names the file and line of a span."""

    motion: Motion
    lists: ListWriter
    where: Callable[[Span], str]
    said: str = ""
    # what has parts and has been made here
    begun: set[str] = field(default_factory=set)

    @property
    def out(self) -> Writer:
        return self.lists.out

    def walk(self, actions: tuple[Action, ...]) -> None:
        """Write actions in order; the parts of a state that one equation sets go together."""
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Set) and action.target in self.motion.parts:
                group = [action]
                while waiting and self._same_equation(action, waiting[0]):
                    group.append(waiting.pop(0))  # type: ignore[arg-type]
                self._say(action.text, action.span)
                self._set_parts(group)
                continue
            match action:
                case Set():
                    self._say(action.text, action.span)
                    self._set(action)
                case Ask(target=target, point=point, span=span):
                    self._say("the gradient with the parameters at another value", span)
                    self.lists.begin(point)
                    where = self.lists.tensors(point).name
                    self.out.line(f"{self.lists.text(target)} = yield {where}")
                case Slope():
                    self._slope(action)
                case When():
                    self._when(action)
                case Every(count=count, body=body, text=text, span=span):
                    self._say(text, span)
                    number = self.lists.number(count).within(UNARY)
                    self.out.line(f"if calls % {number} == 0:")
                    self._inside(body)
                case Loop(count=count, body=body, span=span):
                    self._say(f"repeat {count}", span)
                    self.out.line(f"for _ in range({count}):")
                    self._inside(body)

    def _inside(self, body: tuple[Action, ...]) -> None:
        """Write what an `if` or a loop holds; no local name of it is known after that."""
        shapes, begun = set(self.lists.shapes), set(self.begun)
        with self.out.indent():
            self.walk(body)
        for name in [n for n in self.lists.shapes if self._is_local(n) and n not in shapes]:
            del self.lists.shapes[name]
        self.begun &= begun

    def _say(self, text: str, span: Span) -> None:
        if not text:
            return
        words = re.sub(r"\s+", " ", text)
        place = self.where(span)
        line = f"{words}   ({place})" if place else words
        if line != self.said:
            self.out.comment(line)
            self.said = line

    def _set(self, action: Set) -> None:
        motion, shape = self.motion, action.value.shape
        if action.target == "self":
            shape = motion.shape
        elif not self._is_local(action.target):
            shape = motion.cell(action.target).shape
        self.lists.shapes[action.target] = shape
        self.lists.set(action.target, action.value, shape, self._is_local(action.target))

    def _same_equation(self, first: Set, other: Action) -> bool:
        """Say whether two actions set parts of the same state, by the same equation."""
        parts = self.motion.parts
        return (
            isinstance(other, Set)
            and other.target in parts
            and parts[other.target][0] == parts[first.target][0]
            and (other.text, other.span) == (first.text, first.span)
        )

    def _set_parts(self, group: list[Set]) -> None:
        """Write one equation for all parts of a state: as a loop where they are treated alike."""
        lists, out, parts = self.lists, self.out, self.motion.parts
        whole = parts[group[0].target][0]
        is_local = self._is_local(group[0].target)
        if is_local and whole not in self.begun:
            self.begun.add(whole)
            out.line(f"{lists.text(whole)}: list[dict[str, Tensor]] = [{{}} for _ in w]")
        trials = [self._one_part(action, whole, is_local) for action in group]
        (lines, states), alike = trials[0], len({(lines, states) for lines, states in trials}) == 1
        lists.used.add("parts")
        if alike and len(group) > 1 and states:
            heads = ", ".join(["name" if is_local else "_", *(f"{s}_p" for s in states)])
            out.line(f"for {heads} in parts({', '.join(states)}):")
            out.lines += lines
            return
        for action, (lines, states) in zip(group, trials, strict=True):
            part = parts[action.target][1]
            for state in states:
                lists.used.add("part")
                out.line(f'{state}_p = part({state}, "{part}")')
            own = [line.removeprefix("    ") for line in lines]
            out.lines += [line.replace("name, ", f'"{part}", ') for line in own]

    def _one_part(
        self, action: Set, whole: str, is_local: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write an equation for one part, by names alike for each; give what it reads too."""
        lists, parts = self.lists, self.motion.parts
        part = parts[action.target][1]
        texts = dict(lists.texts)
        for name, (state, other) in parts.items():
            if other == part and (state in lists.texts or state == whole):
                texts[name] = f"{lists.text(state)}_p"
        trial = replace(
            lists, out=Writer(depth=self.out.depth + 1), names=Names(set(lists.names.used)),
            texts=texts,
        )  # fmt: skip
        shape = action.value.shape if is_local else self.motion.cell(action.target).shape
        trial.set(action.target, action.value, shape, is_local)
        target = lists.text(whole)
        if is_local:
            lists.used.add("hold")
            trial.out.line(f"hold({target}, name, {target}_p)")
        text = "\n".join(trial.out.lines)
        known = {lists.text(s) for s, _ in parts.values() if s in lists.texts}
        read = [s for s in sorted(known) if re.search(rf"(?<![\w.]){re.escape(s)}_p\b", text)]
        if is_local:
            read = [s for s in read if s != target]
        return tuple(trial.out.lines), tuple(read)

    def _slope(self, action: Slope) -> None:
        lists, out, parts = self.lists, self.out, self.motion.parts
        lists.begin(*action.points)
        names = [part for part, _ in action.targets]
        points = self._points(action)
        if not out.lines[-1].endswith(":"):
            out.blank()
        self._say(action.text, action.span)
        name = lists.names.fresh("objective")
        others = lists.function(name, action.memory, names, action.objective)
        target = action.targets[0][1]
        head = lists.text(parts[target][0] if target in parts else target)
        lists.used.add("slopes")
        for line in split_call(f"{head} = slopes(", [name, points, *others], ")", out.room):
            out.line(line)

    def _points(self, action: Slope) -> str:
        """Write where a gradient is taken: a list of tensors, or of such by part."""
        lists, parts = self.lists, self.motion.parts
        if len(action.points) == 1:
            return lists.tensors(action.points[0]).name
        wholes = {
            parts.get(p.attr("name"), ("", ""))[0] if p.op == "stream" else ""
            for p in action.points
        }
        if len(wholes) == 1 and "" not in wholes:
            return lists.text(wholes.pop())
        lists.used.add("joined")
        pairs = [
            f'"{part}": {lists.tensors(point).name}'
            for (part, _), point in zip(action.targets, action.points, strict=True)
        ]
        name = lists.names.fresh("where")
        dictionary(self.out, f"{name} = ", pairs)
        return f"joined({name})"

    def _when(self, action: When) -> None:
        lists, out = self.lists, self.out
        self._say(action.text, action.span)
        if lists.is_number(action.condition):
            out.line(f"if {lists.number(action.condition).text}:")
            self._inside(action.body)
            return
        # each copy decides for itself: both values are made, and one is chosen
        lists.begin(action.condition)
        holds = lists.names.fresh("holds")
        lists.assign_list(holds, lists.truths(action.condition))
        inside = [a.target for a in flat(action.body) if isinstance(a, Set | Ask)]
        slopes = [a for a in flat(action.body) if isinstance(a, Slope)]
        inside += [name for a in slopes for _, name in a.targets]
        cells = {cell.name for cell in self.motion.cells}
        known = {"self", *cells, *lists.shapes}
        changed = [name for name in dict.fromkeys(inside) if name in known]
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
        rank = len(lists.shapes[name]) if name in lists.shapes else len(self.motion.shape)
        lists.used.add("chosen")
        value = f"chosen({holds}, {text}, {before}, {rank})"
        if self._is_local(name):
            self.out.line(f"{text} = {value}")
        else:
            lists.call("copy_", text, value)

    def _is_local(self, name: str) -> bool:
        return name != "self" and all(c.name != name for c in self.motion.cells)


def dictionary(out: Writer, head: str, pairs: list[str]) -> None:
    """Write a dict on one line, or its entries on a line each."""
    whole = f"{head}{{{', '.join(pairs)}}}"
    if len(whole) <= out.room and "\n" not in whole:
        out.line(whole)
        return
    out.line(f"{head}{{")
    with out.indent():
        for pair in pairs:
            for line in f"{pair},".split("\n"):
                out.line(line)
    out.line("}")
