"""The syntax tree as text: the canonical form that `fmt` writes.

In: a tree. Out: its text, which parses to the same tree and prints the same again. Columns are
aligned within runs of like lines, comments are kept, long lines are broken. A memory stands before
the first equation that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nlc.syntax import print_expression as p
from nlc.syntax import tree as t
from nlc.syntax.margin import strip_blank
from nlc.syntax.order import memory_places
from nlc.syntax.quote import quote
from nlc.syntax.rows import WIDTH, Row, comment_lines, render

__all__ = ["print_statement", "print_text"]

_NONE = t.Comments()


def print_text(spec: t.Spec) -> str:
    """Return a spec in its canonical text form."""
    rows: list[Row] = []
    if spec.name is not None:
        about = "" if spec.about is None else f" {quote(spec.about)}"
        rows.append(Row(f"system {spec.name}{about}", comments=spec.comments, solid=True))
    _section(rows, [_close(Row(f"use {use.name}", comments=use.comments)) for use in spec.uses])
    notes = dict(spec.clause_comments)
    if spec.dims or "dims" in notes:
        _section(rows, [_dims(spec.dims, notes.get("dims", _NONE))])
    _section(rows, [_level(level) for level in spec.levels])
    for rule in spec.rules:
        _section(rows, [_rule(rule)])
    for block in spec.blocks:
        _section(rows, [_block(block)])
    if spec.model is not None:
        _section(rows, [_model(spec.model)])
    lines = render(rows, "")
    if spec.comments.inside:
        lines.extend(["", *comment_lines(spec.comments.inside, "", strip=True)])
    return "\n".join(lines) + "\n"


def print_statement(statement: t.Stmt) -> str:
    """Return a statement as text, without its comments; several lines where it has a body."""
    return "\n".join(render([_bare(_statement(statement))], ""))


def _bare(row: Row) -> Row:
    body = None if row.body is None else tuple(map(_bare, row.body))
    return replace(row, comments=_NONE, body=body)


def _close(row: Row) -> Row:
    """Return a row without the empty line above it.

    An empty line stays only where the YAML form can have one too, so that conversion is stable.
    """
    above = strip_blank(list(row.comments.above), True, False)
    return replace(row, comments=replace(row.comments, above=above))


def _section(rows: list[Row], added: list[Row]) -> None:
    """Add the rows of a section, with an empty line before the first."""
    if added:
        rows.append(replace(added[0], apart=True))
        rows.extend(added[1:])


# ---- clauses -----------------------------------------------------------------------------------


def _dims(dims: Sequence[t.Dim], comments: t.Comments) -> Row:
    pairs = [f"{dim.name} = {p.print_integer(dim.value)}" for dim in dims]
    row = f"dims {{ {', '.join(pairs)} }}"
    quiet = all(not _says_something(dim.comments) for dim in dims) and not comments.inside
    if pairs and quiet and len(row) <= WIDTH:
        return Row(row, comments=comments)
    body = [Row(dim.name, f" = {p.print_integer(dim.value)}", "dim", dim.comments) for dim in dims]
    return Row("dims {", comments=comments, body=tuple(body))


def _says_something(comments: t.Comments) -> bool:
    above = [line for line in comments.above if line != t.BLANK]
    return bool(above or comments.behind is not None or comments.inside)


def _level(level: t.Level) -> Row:
    return Row(f"level {level.name}", f" {p.print_level_tail(level)}", "level", level.comments)


def _rule(rule: t.Rule) -> Row:
    body = [_state(state) for state in rule.states]
    body.extend(_equations(rule.memories, _first_close(rule.equations)))
    return Row(f"rule {p.print_rule_head(rule)} {{", comments=rule.comments, body=tuple(body))


def _block(block: t.Block) -> Row:
    body = [_weights(weights) for weights in block.weights]
    equations = _equations(block.memories, block.equations)
    if body and equations:
        equations[0] = replace(equations[0], apart=True)
    return Row(
        f"block {p.print_block_head(block)} {{",
        comments=block.comments,
        body=(*body, *equations),
    )


def _equations(memories: Sequence[t.Memory], equations: Sequence[t.Stmt]) -> list[Row]:
    """Return equations with each memory before the first that reads it."""
    places = memory_places(memories, equations)
    rows: list[Row] = []
    apart = False
    waiting = list(zip(memories, places, strict=True))
    for index, equation in enumerate(equations):
        while waiting and waiting[0][1] <= index:
            rows.append(replace(_memory(waiting.pop(0)[0]), apart=True))
            apart = True
        rows.append(replace(_statement(equation), apart=apart))
        apart = False
    rows.extend(replace(_memory(memory), apart=True) for memory, _ in waiting)
    return rows


def _first_close(equations: Sequence[t.Stmt]) -> Sequence[t.Stmt]:
    """Return equations without the empty line above the first."""
    if not equations:
        return equations
    comments = equations[0].comments
    above = strip_blank(list(comments.above), True, False)
    return [replace(equations[0], comments=replace(comments, above=above)), *equations[1:]]


def _weights(weights: t.Weights) -> Row:
    right = f" : {p.print_map(weights.map)}"
    if weights.level is not None:
        right += f" at {weights.level}"
    if weights.init is not None:
        right += f" init {p.print_init(weights.init)}"
    return Row(f"weights {p.print_names(weights)}", right, "weights", weights.comments)


def _state(state: t.State) -> Row:
    left = f"state {state.name}{p.print_shape(state.shape)}"
    return _close(Row(left, f" = {p.print_expression(state.init)}", "state", state.comments))


def _memory(memory: t.Memory) -> Row:
    head = f"memory {p.print_names(memory)} : {p.print_map(memory.map)}"
    if memory.levels:
        head += f" at {', '.join(memory.levels)}"
    notes = dict(memory.clause_comments)

    def clause(word: str, text: str | None) -> list[Row]:
        if text is None:
            return []
        return [Row(word, f" {text}", "clause", notes.get(word, _NONE))]

    def expression(value: t.Expr | None) -> str | None:
        return None if value is None else p.print_expression(value)

    body = [
        *clause("key", p.print_expressions(memory.keys) or None),
        *clause("value", p.print_expressions(memory.values) or None),
        *clause("objective", expression(memory.objective)),
        *(_state(state) for state in memory.states),
    ]
    if isinstance(memory.update, tuple):
        inner = tuple(map(_statement, memory.update))
        body.append(_braced("update", inner, notes.get("update", _NONE)))
    else:
        body.extend(clause("update", expression(memory.update)))
    body.extend(
        [
            *clause("init", None if memory.init is None else p.print_init(memory.init)),
            *clause("reset", None if memory.reset is None else p.print_every(memory.reset)),
            *clause("through", memory.through),
            *clause("slots", None if memory.slots is None else p.print_integer(memory.slots)),
            *clause("route", expression(memory.route)),
            *clause("select", expression(memory.select)),
        ]
    )
    return Row(f"{head} {{", comments=memory.comments, body=tuple(body))


def _model(model: t.Model) -> Row:
    notes = dict(model.clause_comments)
    body: list[Row] = []
    if model.vocab is not None:
        text = f"vocab {p.print_integer(model.vocab)}"
        body.append(Row(text, comments=notes.get("vocab", _NONE)))
    if model.objective is not None:
        text = f"objective {p.print_expression(model.objective)}"
        body.append(Row(text, comments=notes.get("objective", _NONE)))
    body.extend(_equations((), _first_close(model.equations)))
    return Row("model {", comments=model.comments, body=tuple(body))


# ---- statements --------------------------------------------------------------------------------


def _statement(statement: t.Stmt) -> Row:
    match statement:
        case t.Assign(targets):
            left, right = p.print_assign(statement)
            simple = len(targets) == 1 and targets[0].shape is None
            return Row(left, right, "assign" if simple else "", statement.comments)
        case t.Share(name, block):
            return Row(f"share {name} = {block}", comments=statement.comments)
        case t.Every(period, body):
            head = p.print_every(period)
        case t.When(condition, body):
            head = f"when {p.print_expression(condition)}"
        case t.Repeat(count, body):
            head = f"repeat {p.print_integer(count)}"
    return _braced(head, tuple(map(_statement, body)), statement.comments)


def _braced(head: str, body: Iterable[Row], comments: t.Comments) -> Row:
    """Return `head { ... }`, on one line where there is but one short equation within."""
    return Row(f"{head} {{", comments=comments, body=tuple(body), short=True)
