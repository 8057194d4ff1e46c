"""Changes of a spec from outside: `dims.d = 128`, `levels.fast.chunk = 1`.

In: a tree and a mapping from paths to values. Out: the changed tree. A path names a clause as the
YAML form does; faults carry the code NL0313.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nlc.diagnostics import Faults
from nlc.errors import nearest
from nlc.source import Source
from nlc.syntax import tree
from nlc.syntax.parse_text import parse_passage
from nlc.syntax.passage import Passage
from nlc.syntax.print_expression import print_expression

PATHS = (
    "dims.NAME, levels.NAME.every, levels.NAME.chunk, levels.NAME.optimizer, "
    "levels.NAME.optimizer.ARGUMENT, model.vocab, model.repeat, "
    "blocks.NAME.memories.NAME.level (or update, objective, init, reset, through), "
    "blocks.NAME.weights.NAME.level (or init), blocks.NAME.equations.STREAM"
)

THROUGH = ("full", "first_order", "stop")


def apply_settings(spec: tree.Spec, settings: Mapping[str, Any]) -> tree.Spec:
    """Return the spec with the settings made; raise `SpecError` where one has no place."""
    faults = Faults()
    for path, value in settings.items():
        changed = _Setting(faults, path, value).change(spec)
        if changed is not None:
            spec = changed
    faults.stop_on_errors()
    return spec


class _Setting:
    def __init__(self, faults: Faults, path: str, value: Any):
        self.faults = faults
        self.path = path
        self.source = Source(f"--set {path}", str(value))

    def parse(self, start: str) -> Any:
        """Parse the value as a part of the grammar."""
        found = parse_passage(Passage.whole(self.source), start, "setting", self.faults)
        if found is None:
            self.faults.stop_on_errors()
        return found

    def unknown(self, word: str, known: list[str]) -> None:
        if not word:
            self.nothing("a part without a name", f"paths are {PATHS}")
            return
        close = nearest(word, known)
        hint = f"paths are {PATHS}"
        if close:
            hint = f"did you mean `{close}`?"
        elif known:
            hint = f"known here: {', '.join(f'`{k}`' for k in sorted(known)[:12])}"
        self.nothing(f"no `{word}`", hint)

    def nothing(self, what: str, hint: str) -> None:
        """Say that the setting changes nothing."""
        title = f"`--set {self.path}` changes nothing: there is {what}"
        self.faults.error("NL0313", title, None, "", hint)

    def change(self, spec: tree.Spec) -> tree.Spec | None:
        words = self.path.split(".")
        match words:
            case ["dims", name]:
                dims = self._named(spec.dims, name, "value", lambda: self.parse("expression"))
                return None if dims is None else replace(spec, dims=dims)
            case ["levels", name, *rest]:
                return self._levels(spec, name, rest)
            case ["model", word] if spec.model is not None:
                return self._model(spec, spec.model, word)
            case ["blocks", block, "equations", name]:
                return self._equation(spec, block, name)
            case ["blocks", block, kind, name, word] if kind in ("memories", "weights"):
                return self._block(spec, block, kind, name, word)
        self._no_path(words, spec)
        return None

    def _no_path(self, words: list[str], spec: tree.Spec) -> None:
        """Say that a path leads nowhere, and which one may be meant."""
        first, last = words[0], words[-1]
        meant = [f"dims.{d.name}" for d in spec.dims if [d.name] == words]
        if first == "blocks" and len(words) > 1:
            block = next((b for b in spec.blocks if b.name == words[1]), None)
            if block is None:
                self.unknown(words[1], [b.name for b in spec.blocks])
                return
            for kind in ("memories", "weights"):
                if any(last in item.names for item in getattr(block, kind)):
                    meant = [f"blocks.{block.name}.{kind}.{last}.level"]
            for line in block.equations:
                if isinstance(line, tree.Assign) and (last,) in [t.path for t in line.targets]:
                    meant = [f"blocks.{block.name}.equations.{last}"]
        if meant:
            self.nothing(f"no path `{self.path}`", f"did you mean `{meant[0]}`?")
        elif first in ("dims", "levels", "blocks", "model"):
            self.nothing(f"no path `{self.path}`", f"paths are {PATHS}")
        else:
            self.unknown(first, ["dims", "levels", "blocks", "model"] if len(words) > 1 else [])

    def _named(self, items: Any, name: str, key: str, make: Any) -> Any:
        if name not in [item.name for item in items]:
            self.unknown(name, [item.name for item in items])
            return None
        return tuple(
            replace(item, **{key: make()}) if item.name == name else item for item in items
        )

    def _levels(self, spec: tree.Spec, name: str, rest: list[str]) -> tree.Spec | None:
        levels = None
        match rest:
            case ["every"]:
                levels = self._named(spec.levels, name, "period", self._period)
            case ["chunk" | "optimizer" as key]:
                levels = self._named(spec.levels, name, key, lambda: self.parse("expression"))
            case ["optimizer", argument]:
                level = next((lv for lv in spec.levels if lv.name == name), None)
                call = level.optimizer if level else None
                if isinstance(call, tree.Name):
                    call = tree.Call(call)
                if isinstance(call, tree.Call):
                    value = self.parse("expression")
                    kept = tuple(k for k in call.keywords if k.name != argument)
                    given = tree.Keyword(argument, value, span=value.span)
                    new = replace(call, keywords=(*kept, given))
                    levels = self._named(spec.levels, name, "optimizer", lambda: new)
                else:
                    self.unknown("optimizer", [])
            case []:
                self.nothing(f"no path `{self.path}`", f"paths are {PATHS}")
            case _:
                self.unknown(".".join(rest), ["every", "chunk", "optimizer"])
        return None if levels is None else replace(spec, levels=levels)

    def _period(self) -> tree.Period:
        words = self.source.text.strip().removeprefix("every ")
        if words in ("always", "never"):
            return tree.Period(words)  # type: ignore[arg-type]
        number, _, unit = words.rpartition(" ")
        if unit not in ("token", "tokens", "step", "steps"):
            self.nothing(f"no period `{words}`", "write `4 tokens`, `1 step`, `always` or `never`")
            self.faults.stop_on_errors()
        self.source = Source(self.source.name, number)
        plural = unit if unit.endswith("s") else f"{unit}s"
        return tree.Period(plural, self.parse("expression"))  # type: ignore[arg-type]

    def _model(self, spec: tree.Spec, model: tree.Model, word: str) -> tree.Spec | None:
        if word == "vocab":
            return replace(spec, model=replace(model, vocab=self.parse("expression")))
        if word == "objective":
            return replace(spec, model=replace(model, objective=self.parse("expression")))
        repeats = [s for s in model.equations if isinstance(s, tree.Repeat)]
        if word == "repeat" and repeats:
            count = self.parse("expression")
            equations = tuple(
                replace(s, count=count) if s is repeats[0] else s for s in model.equations
            )
            return replace(spec, model=replace(model, equations=equations))
        if word == "repeat":
            self.nothing("no `repeat` in the model", "write `repeat 2 { ... }` there first")
            return None
        self.unknown(word, ["vocab", "repeat", "objective"])
        return None

    def _equation(self, spec: tree.Spec, name: str, stream: str) -> tree.Spec | None:
        """Give a stream of a block another equation; its written shape stays."""
        block = next((b for b in spec.blocks if b.name == name), None)
        if block is None:
            self.unknown(name, [b.name for b in spec.blocks])
            return None
        lines = [line for line in block.equations if isinstance(line, tree.Assign)]
        known = [t.path[0] for line in lines for t in line.targets if len(t.path) == 1]
        if stream not in known:
            self.unknown(stream, known)
            return None
        line = next(line for line in lines if (stream,) in [t.path for t in line.targets])
        at = [t.path for t in line.targets].index((stream,))
        if len(line.values) != len(line.targets):
            names = ", ".join(f"`{t.path[0]}`" for t in line.targets)
            self.nothing(f"no equation of `{stream}` alone", f"one call gives {names}")
            return None
        values = (*line.values[:at], self.parse("expression"), *line.values[at + 1 :])
        equations = tuple(replace(e, values=values) if e is line else e for e in block.equations)
        changed = replace(block, equations=equations)
        return replace(spec, blocks=tuple(changed if b is block else b for b in spec.blocks))

    def _block(
        self, spec: tree.Spec, name: str, kind: str, item: str, word: str
    ) -> tree.Spec | None:
        block = next((b for b in spec.blocks if b.name == name), None)
        if block is None:
            self.unknown(name, [b.name for b in spec.blocks])
            return None
        items: Any = getattr(block, kind)
        known = [n for i in items for n in i.names]
        if item not in known:
            self.unknown(item, known)
            return None
        keys = {"level", "init"} | (
            {"objective", "update", "through", "reset"} if kind == "memories" else set()
        )
        if word not in keys:
            self.unknown(word, sorted(keys))
            return None
        value: Any
        if word in ("level", "through"):
            value = print_expression(self.parse("expression"))
            if word == "through" and value not in THROUGH:
                self.unknown(value, list(THROUGH))
                return None
        elif word == "reset":
            value = self._period()
        else:
            value = self.parse("expression")
        if word == "level" and kind == "memories":
            word, value = "levels", (value,)
        alone: list[Any] = [one for i in items for one in (_apart(i) if item in i.names else (i,))]
        new: tuple[Any, ...] = tuple(
            replace(i, **{word: value}) if item in i.names else i for i in alone
        )
        changed = (
            replace(block, memories=new) if kind == "memories" else replace(block, weights=new)
        )
        blocks = tuple(changed if b is block else b for b in spec.blocks)
        return replace(spec, blocks=blocks)


def _apart(item: tree.Weights | tree.Memory) -> tuple[tree.Weights | tree.Memory, ...]:
    """Write a clause of several names as one clause for each."""
    spans = item.name_spans or (item.span,) * len(item.names)
    found: list[tree.Weights | tree.Memory] = []
    for i, (name, span) in enumerate(zip(item.names, spans, strict=True)):
        one = replace(item, names=(name,), name_spans=(span,))
        if isinstance(one, tree.Memory) and len(one.levels) == len(item.names):
            one = replace(one, levels=one.levels[i : i + 1], level_spans=one.level_spans[i : i + 1])
        found.append(one)
    return tuple(found)
