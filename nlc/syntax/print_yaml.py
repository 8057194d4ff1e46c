"""The syntax tree in the YAML form.

In: a tree. Out: YAML text, which parses to the same tree and prints the same again. Everything that
YAML would read as something else stands in double quotes; comments are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlc.syntax import print_expression as p
from nlc.syntax import tree as t
from nlc.syntax.margin import strip_blank
from nlc.syntax.order import memory_places
from nlc.syntax.rows import comment_lines
from nlc.syntax.yaml_writer import Entry, flow_list, flow_mapping, render, scalar

__all__ = ["print_yaml"]

_NONE = t.Comments()


def print_yaml(spec: t.Spec) -> str:
    """Return a spec in its YAML form."""
    notes = dict(spec.clause_comments)
    entries: list[Entry] = []
    if spec.name is not None:
        entries.append(Entry("system", scalar(spec.name), spec.comments))
    if spec.about is not None:
        entries.append(Entry("about", scalar(spec.about)))
    if spec.uses:
        entries.append(_uses(spec.uses))
    if spec.dims or "dims" in notes:
        entries.append(_dims(spec.dims, notes.get("dims", _NONE)))
    for key, section in (
        ("levels", [_level(level) for level in spec.levels]),
        ("rules", [_rule(rule) for rule in spec.rules]),
        ("blocks", [_block(block) for block in spec.blocks]),
    ):
        if section:
            entries.append(Entry(key, children=section))
    if spec.model is not None:
        entries.append(_model(spec.model))
    lines = render([_outer(entry) for entry in entries], 0)
    lines.extend(comment_lines(spec.comments.inside, "", strip=not lines))
    return "\n".join(lines) + "\n"


def _outer(entry: Entry) -> Entry:
    """Return an outermost entry: no empty line before it; what closes the file comes last."""
    comments = _joined(entry.comments)
    if entry.key == "system":
        comments = replace(comments, inside=())
    return replace(entry, comments=comments)


def _joined(comments: t.Comments) -> t.Comments:
    """Return comments without the empty line above them."""
    return replace(comments, above=strip_blank(list(comments.above), True, False))


def _speaks(comments: t.Comments) -> bool:
    above = [line for line in comments.above if line != t.BLANK]
    return bool(above or comments.behind is not None or comments.inside)


# ---- the outermost sections --------------------------------------------------------------------


def _uses(uses: Sequence[t.Use]) -> Entry:
    flow = flow_list([use.name for use in uses], len("use: "))
    if flow is not None and not any(_speaks(use.comments) for use in uses):
        return Entry("use", flow)
    items = [Entry(None, scalar(use.name), use.comments) for use in uses]
    return Entry("use", children=items)


def _dims(dims: Sequence[t.Dim], comments: t.Comments) -> Entry:
    pairs = [(dim.name, p.print_integer(dim.value)) for dim in dims]
    flow = flow_mapping(pairs, len("dims: "))
    quiet = not comments.inside and not any(_speaks(dim.comments) for dim in dims)
    if flow is not None and quiet:
        return Entry("dims", flow, comments)
    children = [
        Entry(dim.name, scalar(text), dim.comments)
        for dim, (_, text) in zip(dims, pairs, strict=True)
    ]
    return Entry("dims", comments=comments, children=children)


def _level(level: t.Level) -> Entry:
    if level.period.count is None:
        return Entry(level.name, scalar(p.print_level_tail(level)), level.comments)
    pairs = [("every", p.print_period(level.period))]
    if level.chunk is not None:
        pairs.append(("chunk", p.print_integer(level.chunk)))
    if level.optimizer is not None:
        optimizer = p.print_expression(level.optimizer, binding=p.SUM)
        pairs.append(("optimizer", optimizer))
    return _pairs(level.name, pairs, level.comments, 2)


def _pairs(key: str, pairs: Sequence[tuple[str, str]], comments: t.Comments, indent: int) -> Entry:
    """Return a short mapping on one line, a long one below its key."""
    flow = flow_mapping(pairs, indent + len(key) + 2)
    if flow is not None:
        return Entry(key, flow, comments)
    return Entry(key, comments=comments, children=[Entry(k, scalar(v)) for k, v in pairs])


def _rule(rule: t.Rule) -> Entry:
    children: list[Entry] = []
    if rule.states:
        children.append(_states(rule.states, 4))
    if rule.memories:
        children.append(Entry("memories", children=[_memory(m, 6) for m in rule.memories]))
    if rule.equations:
        children.append(Entry("update", children=_equations(rule.equations, 6)))
    return Entry(p.print_rule_head(rule), comments=rule.comments, children=children)


def _block(block: t.Block) -> Entry:
    children: list[Entry] = []
    if block.weights:
        children.append(Entry("weights", children=[_weights(w) for w in block.weights]))
    if block.equations:
        # the text form always has an empty line between a memory and what follows it
        after = set(memory_places(block.memories, block.equations))
        equations = [
            replace(entry, comments=_joined(entry.comments)) if index in after else entry
            for index, entry in enumerate(_equations(block.equations, 6))
        ]
        children.append(Entry("equations", children=equations))
    if block.memories:
        children.append(Entry("memories", children=[_memory(m, 6) for m in block.memories]))
    return Entry(p.print_block_head(block), comments=block.comments, children=children)


def _model(model: t.Model) -> Entry:
    notes = dict(model.clause_comments)
    children: list[Entry] = []
    if model.vocab is not None:
        text = p.print_integer(model.vocab)
        children.append(Entry("vocab", scalar(text), notes.get("vocab", _NONE)))
    if model.objective is not None:
        text = p.print_expression(model.objective)
        children.append(Entry("objective", scalar(text), notes.get("objective", _NONE)))
    if model.equations:
        children.append(Entry("equations", children=_equations(model.equations, 4)))
    return Entry("model", comments=model.comments, children=children)


# ---- weights and memories ----------------------------------------------------------------------


def _weights(weights: t.Weights) -> Entry:
    key, kind = p.print_names(weights), p.print_map(weights.map)
    if weights.level is None and weights.init is None:
        return Entry(key, scalar(kind), weights.comments)
    pairs = [("map", kind)]
    if weights.level is not None:
        pairs.append(("level", weights.level))
    if weights.init is not None:
        pairs.append(("init", p.print_init(weights.init)))
    return _pairs(key, pairs, weights.comments, 6)


def _states(states: Sequence[t.State], indent: int) -> Entry:
    pairs = [(s.name + p.print_shape(s.shape), p.print_expression(s.init)) for s in states]
    flow = flow_mapping(pairs, indent + len("state: "))
    if flow is not None and not any(_speaks(state.comments) for state in states):
        return Entry("state", flow)
    children = [
        Entry(key, scalar(text), state.comments)
        for state, (key, text) in zip(states, pairs, strict=True)
    ]
    return Entry("state", children=children)


def _memory(memory: t.Memory, indent: int) -> Entry:
    notes = dict(memory.clause_comments)
    children = [Entry("map", scalar(p.print_map(memory.map)))]
    if memory.levels:
        children.append(Entry("level", scalar(", ".join(memory.levels))))

    def clause(word: str, text: str | None) -> None:
        if text is not None:
            children.append(Entry(word, scalar(text), notes.get(word, _NONE)))

    def expression(word: str, value: t.Expr | None) -> None:
        clause(word, None if value is None else p.print_expression(value))

    clause("key", p.print_expressions(memory.keys) or None)
    clause("value", p.print_expressions(memory.values) or None)
    expression("objective", memory.objective)
    if memory.states:
        children.append(_states(memory.states, indent + 2))
    if isinstance(memory.update, tuple):
        body = _equations(memory.update, indent + 4)
        children.append(
            Entry("update", comments=notes.get("update", _NONE), children=body, is_list=True)
        )
    else:
        expression("update", memory.update)
    clause("init", None if memory.init is None else p.print_init(memory.init))
    clause("reset", None if memory.reset is None else p.print_period(memory.reset))
    clause("through", memory.through)
    clause("slots", None if memory.slots is None else p.print_integer(memory.slots))
    expression("route", memory.route)
    expression("select", memory.select)
    return Entry(p.print_names(memory), comments=memory.comments, children=children)


# ---- equations ---------------------------------------------------------------------------------


def _equations(statements: Sequence[t.Stmt], indent: int) -> list[Entry]:
    """Return the items of a list whose dashes stand at `indent`."""
    return [_statement(statement, indent) for statement in statements]


def _statement(statement: t.Stmt, indent: int) -> Entry:
    keys: list[tuple[str, str | None]]
    match statement:
        case t.Assign():
            text = "".join(p.print_assign(statement))
            return Entry(None, scalar(text), statement.comments)
        case t.Share(name, block):
            return Entry(None, f"share {name} = {block}", statement.comments)
        case t.Every(period, body):
            keys = [(p.print_every(period), None)]
        case t.When(condition, body):
            keys = [("when", p.print_expression(condition)), ("do", None)]
        case t.Repeat(count, body):
            keys = [("repeat", p.print_integer(count)), ("equations", None)]
    quiet = not statement.comments.inside
    flow = _flow_body(body, indent + 4 + len(keys[-1][0])) if quiet else None
    inner = None if flow is not None else _equations(body, indent + 4)
    fields = [Entry(key, scalar(text)) for key, text in keys if text is not None]
    fields.append(Entry(keys[-1][0], flow, children=inner, is_list=True))
    return Entry(None, comments=statement.comments, fields=fields)


def _flow_body(body: Sequence[t.Stmt], used: int) -> str | None:
    """Return `[x = f(x)]` for one short equation without comments."""
    if not body:
        return "[]"
    if len(body) > 1 or not isinstance(body[0], t.Assign | t.Share) or _speaks(body[0].comments):
        return None
    text = f"share {body[0].name} = {body[0].block}" if isinstance(body[0], t.Share) else ""
    if isinstance(body[0], t.Assign):
        text = "".join(p.print_assign(body[0]))
    return flow_list([text], used)
