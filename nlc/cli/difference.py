"""What differs between two specs: their clauses side by side, whatever order they are written in.

In: two syntax trees. Out: rows (clause, in the one, in the other). Names of systems, comments and
the order of clauses do not count; what only one of them has is one row, however much is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from nlc.syntax import print_expression as p
from nlc.syntax import tree as t
from nlc.syntax.print_text import print_statement

# characters of a cell
SHOWN = 56
# what is told of a block that only one spec has
INSIDE = "(inside)"


@dataclass(frozen=True)
class Difference:
    """A clause that differs; "" stands for what is not there."""

    clause: str
    one: str
    other: str


def differences(one: t.Spec, other: t.Spec) -> list[Difference]:
    """Compare two specs clause by clause."""
    a, b = dict(_clauses(one)), dict(_clauses(other))
    found = []
    for name in [*a, *(name for name in b if name not in a)]:
        if a.get(name) != b.get(name) and not _inside_missing(name, a, b):
            found.append(Difference(name, *(_whole(name, side) for side in (a, b))))
    return found + list(_models(one, other))


def _whole(name: str, side: dict[str, str]) -> str:
    """Return a clause's text; of a block also what is in it."""
    parts = [side.get(name, ""), side.get(f"{name} {INSIDE}", "")]
    return ": ".join(part for part in parts if part)


def _models(one: t.Spec, other: t.Spec) -> Iterator[Difference]:
    """Compare the lines of two models, in their order."""
    a, b = (_lines(() if s.model is None else s.model.equations) for s in (one, other))
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind != "equal":
            yield Difference("model", "; ".join(a[i:j]), "; ".join(b[k:m]))


def _lines(statements: Iterable[t.Stmt]) -> list[str]:
    found = []
    for statement in statements:
        if isinstance(statement, t.Repeat):
            found.append(f"repeat {p.print_integer(statement.count)}")
            found += [f"  {line}" for line in _lines(statement.body)]
        else:
            found.append(_one_line([print_statement(statement)]))
    return found


def _inside_missing(name: str, a: dict[str, str], b: dict[str, str]) -> bool:
    """Say whether a clause is in a block or memory that only one of the two has."""
    words = name.split(" ")
    if words[-1] == INSIDE:
        return True
    outer = (" ".join(words[:n]) for n in range(1, len(words)))
    return any((place in a) != (place in b) for place in outer)


def _clauses(spec: t.Spec) -> Iterator[tuple[str, str]]:
    """Give each clause a name and its text."""
    for use in spec.uses:
        yield f"use {use.name}", "used"
    for dim in spec.dims:
        yield f"dims.{dim.name}", p.print_integer(dim.value)
    for level in spec.levels:
        yield f"level.{level.name}", p.print_every(level.period)
        if level.chunk is not None:
            yield f"level.{level.name} chunk", p.print_integer(level.chunk)
        if level.optimizer is not None:
            yield f"level.{level.name} optimizer", p.print_expression(level.optimizer)
    for rule in spec.rules:
        body = [f"state {s.name} = {p.print_expression(s.init)}" for s in rule.states]
        body += [f"memory {n}" for m in rule.memories for n in m.names]
        body += [print_statement(s) for s in rule.equations]
        yield p.print_rule_head(rule), _one_line(body)
    for block in spec.blocks:
        yield from _block(block)
    if spec.model is not None:
        yield from _model(spec.model)


def _block(block: t.Block) -> Iterator[tuple[str, str]]:
    head = f"block.{block.name}"
    counts = [
        f"{len(items)} {word}"
        for items, word in (
            ([n for w in block.weights for n in w.names], "weights"),
            ([n for m in block.memories for n in m.names], "memories"),
        )
        if items
    ]
    yield head, p.print_block_head(block).removeprefix(block.name)
    yield f"{head} {INSIDE}", ", ".join(counts)
    for weights in block.weights:
        tail = p.print_map(weights.map)
        tail += f" at {weights.level}" if weights.level else ""
        tail += f" init {p.print_init(weights.init)}" if weights.init is not None else ""
        for name in weights.names:
            yield f"{head} {name}", tail
    for memory in block.memories:
        for i, name in enumerate(memory.names):
            yield from _memory(f"{head} {name}", memory, i)
    for statement in block.equations:
        yield from _statement(head, statement)


def _memory(head: str, memory: t.Memory, number: int) -> Iterator[tuple[str, str]]:
    """Give a memory's clauses; those of one that is missing in the other spec are one row."""
    levels = memory.levels
    level = levels[number] if len(levels) == len(memory.names) else "".join(levels[:1])
    yield head, p.print_map(memory.map)
    clauses: list[tuple[str, str | None]] = [
        ("at", level or None),
        ("key", p.print_expressions(memory.keys) if memory.keys else None),
        ("value", p.print_expressions(memory.values) if memory.values else None),
        ("objective", _expression(memory.objective)),
        ("update", _update(memory)),
        ("init", None if memory.init is None else p.print_init(memory.init)),
        ("reset", None if memory.reset is None else p.print_every(memory.reset)),
        ("through", memory.through),
        ("slots", _expression(memory.slots)),
        ("route", _expression(memory.route)),
        ("select", _expression(memory.select)),
    ]
    for state in memory.states:
        shape = p.print_shape(state.shape)
        clauses.append((f"state {state.name}{shape}", p.print_expression(state.init)))
    for word, text in clauses:
        if text is not None:
            yield f"{head} {word}", text


def _update(memory: t.Memory) -> str | None:
    if memory.update is None:
        return None
    if isinstance(memory.update, tuple):
        return _one_line([print_statement(s) for s in memory.update])
    return p.print_expression(memory.update)


def _expression(value: t.Expr | None) -> str | None:
    return None if value is None else p.print_expression(value)


def _statement(head: str, statement: t.Stmt) -> Iterator[tuple[str, str]]:
    if isinstance(statement, t.Assign):
        left, right = p.print_assign(statement)
        yield f"{head} {left}", right.removeprefix(" = ")
    else:
        yield f"{head} {type(statement).__name__.lower()}", _one_line([print_statement(statement)])


def _model(model: t.Model) -> Iterator[tuple[str, str]]:
    if model.vocab is not None:
        yield "model.vocab", p.print_expression(model.vocab)
    if model.objective is not None:
        yield "model.objective", p.print_expression(model.objective)


def _one_line(statements: list[str]) -> str:
    return "; ".join(" ".join(s.split()) for s in statements)


def shown(text: str) -> str:
    """Cut a clause to what a table holds."""
    if not text:
        return "-"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
