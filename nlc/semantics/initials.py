"""Initial values: of weights, of memories, of extra states."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder, rewrite
from nlc.ir.shape import show
from nlc.ir.system import (
    Initial,
    Part,
    Variable,
)  # fmt: skip
from nlc.semantics.context import real
from nlc.semantics.memories import lead_of, rule_of, state_leaf
from nlc.semantics.records import Body
from nlc.semantics.trees import calls, mentions
from nlc.semantics.updates import UpdateScope
from nlc.semantics.values import Struct
from nlc.semantics.windows import place_of
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def resolve_initial(block: BlockResolver, written: tree.Expr | tree.From) -> Initial:
    """Resolve an `init` clause other than `learned`."""
    match written:
        case tree.From(name=name):
            if name not in block.bodies and name not in block.weights:
                known = [*block.bodies, *block.weights]
                block.context.unknown("memory", name, written.span, known, "NL0301")
            return Initial("source", source=name)
        case tree.Name(id="zeros"):
            return Initial("constant", 0.0)
        case tree.Call(function=tree.Name(id="normal"), arguments=(std,)):
            return Initial("normal", real(block.context, std))
        case tree.Number():
            return Initial("constant", float(written.value))
    if not calls(written) - {"sqrt", "exp", "log", "abs"} and not mentions(
        written, {*block.weights, *block.streams, *block.bodies}
    ):
        return Initial("constant", real(block.context, written))
    expr = block.scope.plain(written)
    only_parameters(block, expr, written.span)
    return Initial("expr", expr=expr)


def only_parameters(block: BlockResolver, expr: Expr, span: Span) -> None:
    """Refuse an initial value that depends on tokens."""
    for node in postorder([expr]):
        if node.op in ("stream", "state", "position", "shift", "conv"):
            block.context.fail(
                "NL0510", "an initial value depends on tokens", place_of(node, [expr], span),
                "changes over time", "initial values are made of numbers, dims and weights",
            )  # fmt: skip


def set_initials(block: BlockResolver, body: Body) -> None:
    """Give a memory and its extra states their initial values."""
    written = body.written.init
    deep = body.map.kind in ("glu", "lora") or (body.map.kind == "mlp" and len(body.map.chain) > 2)
    if written is None:
        # what learns from the task begins as weights do
        body.learned = body.learned or deep or body.is_task
        if not body.learned:
            _set_initial(block, body, Initial("constant", 0.0))
    elif isinstance(written, tree.Name) and written.id == "learned":
        body.learned = True
    elif isinstance(written, tree.Call) and mentions(written.function, {"learned"}):
        block.context.fail(
            "NL0510", "`learned(n)` is for softmax memories", written.span, "n learned pairs",
            "write `init learned`",
        )  # fmt: skip
    elif (value := _by_part(block, body, written)) is not None:
        _set_parts(block, body, value, written.span)
    else:
        initial = resolve_initial(block, written)
        if initial.kind == "source":
            _check_source(block, body, initial.source, written.span)
        # a random start is drawn once, as a parameter is
        body.learned = body.learned or initial.kind == "normal"
        _set_initial(block, body, initial)
    _state_initials(block, body)


def _by_part(block: BlockResolver, body: Body, written: tree.Expr | tree.From) -> Struct | None:
    """Resolve an initial value that has parts, being made of weights that have them."""
    several = {name for name, weight in block.weights.items() if len(weight.map.parts) > 1}
    if isinstance(written, tree.From) or len(body.map.parts) < 2 or not mentions(written, several):
        return None
    value = block.scope.value(written)
    return value if isinstance(value, Struct) else None


def _set_parts(block: BlockResolver, body: Body, value: Struct, span: Span) -> None:
    """Give each part its initial value: both maps have parts of the same names and sizes."""
    lead, given = lead_of(block, body), dict(value.parts)
    parts: list[Part] = []
    for part in body.map.parts:
        expr = given.pop(part.name, None)
        want = [a.size for a in (*lead, *part.shape)]
        if expr is None or [a.size for a in expr.shape] not in (want, want[len(lead) :]):
            have = "there is none of it" if expr is None else f"this has {show(expr.shape)}"
            block.context.fail(
                "NL0510", "the initial value does not fit the memory", span,
                f"`{part.name}`: {have}, and the memory {show((*lead, *part.shape))}",
                "a map with several parts begins as something made of weights with the same map",
                (body.written.span, "the memory"),
            )  # fmt: skip
        only_parameters(block, expr, span)
        parts.append(replace(part, initial=Initial("expr", expr=expr)))
    body.variables[0] = replace(body.variables[0], parts=tuple(parts))


def _check_source(block: BlockResolver, body: Body, source: str, span: Span) -> None:
    other = block.bodies.get(source)
    if other is not None:
        parts, lead = other.map.parts, lead_of(block, other)
    else:
        parts, lead = block.weights[source].map.parts, block.weights[source].lead
    mine = [(p.name, [a.size for a in p.shape]) for p in body.map.parts]
    theirs = [(p.name, [a.size for a in p.shape]) for p in parts]
    names = {axis.name for axis in body.lead or ()}
    if mine != theirs or any(axis.name not in names for axis in lead):
        block.context.fail(
            "NL0510", f"`{body.name}` cannot begin as `{source}`", span,
            "the maps have different shapes", "both need the same map and leading axes",
            (body.written.span, "the memory"), (block.owners[source][1], f"`{source}`"),
        )  # fmt: skip


def _set_initial(block: BlockResolver, body: Body, initial: Initial) -> None:
    if initial.kind == "expr" and initial.expr is not None:
        part = body.map.parts[0]
        want = (*lead_of(block, body), *part.shape)
        have = initial.expr.shape
        if len(body.map.parts) > 1 or [a.size for a in have] not in (
            [a.size for a in want], [a.size for a in part.shape], []
        ):  # fmt: skip
            block.context.fail(
                "NL0510", "the initial value does not fit the memory", initial.expr.span,
                f"this is {show(have)}", f"the memory is {show(want)}",
            )  # fmt: skip
    parts = tuple(replace(p, initial=initial) for p in body.map.parts)
    body.variables[0] = replace(body.variables[0], parts=parts)


def _state_initials(block: BlockResolver, body: Body) -> None:
    rule = rule_of(block, body)
    written = {s.name: s for s in (*body.written.states, *(rule.states if rule else ()))}
    for i, variable in enumerate(body.variables):
        inner, rest, suffix = _inner_state(body, variable.name)
        if inner is not None:
            if not rest:
                set_initials(block, inner)
            parts = next(v.parts for v in inner.variables if v.name == rest)
            parts = tuple(_outside(block, body, inner, part, suffix) for part in parts)
            body.variables[i] = replace(variable, parts=parts)
            continue
        if not variable.name:
            continue
        state = written[variable.name]
        if isinstance(state.init, tree.Number):
            initial = Initial("constant", float(state.init.value))
            parts = tuple(replace(p, initial=initial) for p in variable.parts)
        elif isinstance(state.init, tree.Name) and state.init.id == "zeros":
            parts = variable.parts
        else:
            parts = _state_expr(block, body, variable, state)
        body.variables[i] = replace(variable, parts=parts)


def _inner_state(body: Body, name: str) -> tuple[Body | None, str, str]:
    """Split the name of a state: a memory of the rule, its state, and the part that it is for."""
    for part, memories in body.inner_of.items():
        plain = name.removesuffix(f".{part}")
        first, _, rest = plain.partition(".")
        if plain != name and first in memories:
            return memories[first], rest, f".{part}"
    first, _, rest = name.partition(".")
    return body.inner.get(first), rest, ""


def _outside(block: BlockResolver, body: Body, inner: Body, part: Part, suffix: str) -> Part:
    """Give the initial value of a rule's memory over the states of what the rule moves."""
    if part.initial.expr is None:
        return part

    def leaf(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "state" or node.attr("memory") != inner.label:
            return None
        var = node.attr("var")
        full = (f"{inner.name}.{var}" if var else inner.name) + suffix
        variable = next(v for v in inner.variables if v.name == var)
        own = next(p for p in variable.parts if p.name == node.attr("part"))
        return state_leaf(block, body, full, own, node.attr("when"))

    expr = rewrite(block.graph, [part.initial.expr], leaf)[0]
    return replace(part, initial=Initial("expr", expr=expr))


def _state_expr(
    block: BlockResolver, body: Body, variable: Variable, state: tree.State
) -> tuple[Part, ...]:
    scope = UpdateScope(block, body, {} if rule_of(block, body) else None)
    scope.env["self"] = scope.all_parts("", "initial")
    value = scope.value(state.init)
    own = [part.name for part in variable.parts]
    if isinstance(value, Struct) and [name for name, _ in value.parts] != own:
        given = ", ".join(f"`{name}`" for name, _ in value.parts)
        only = ", ".join(f"`{name}`" for name in own if name)
        block.context.fail(
            "NL0515", f"the state `{variable.name}` does not fit its initial value",
            state.init.span, f"this has the parts {given}",
            f"the state has the parts {only}" if only else "the state has no parts",
        )  # fmt: skip
    parts: list[Part] = []
    for part in variable.parts:
        expr = value.part(part.name) if isinstance(value, Struct) else value
        lead = lead_of(block, body)
        want = (*lead, *part.shape)
        if [a.size for a in expr.shape] not in ([a.size for a in want], []):
            block.context.fail(
                "NL0515", f"the state `{variable.name}` does not fit its initial value",
                state.init.span, f"this is {show(expr.shape[len(lead):])}",
                f"the state is {show(part.shape)}",
            )  # fmt: skip
        for node in postorder([expr]):
            if node.op in ("stream", "position") or (
                node.op == "state" and node.attr("when") != "initial"
            ):
                block.context.fail(
                    "NL0510", "an initial value depends on tokens", state.init.span,
                    "changes over time", "`self` here is the memory's initial value",
                )  # fmt: skip
        parts.append(replace(part, initial=Initial("expr", expr=expr)))
    return tuple(parts)
