"""Rules by themselves, as optimizers run them: equations in order, over the values on their line.

In: a rule and the shape of a parameter. Out: a `Motion`, or the faults that keep the rule from
moving such a parameter. Arguments are numbers that are known when an optimizer is made; `in` and
`out` stay names, so one motion serves all parameters of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.diagnostics import Diagnostic
from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.operations import OPERATIONS
from nlc.ir.rule import RANKS, Action, Cell, Kind, Motion, OptimizerRule, Set, expressions, flat
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Initial, Map, Part, System
from nlc.semantics.blocks import BlockResolver
from nlc.semantics.context import Bad, ClauseFaults, Context
from nlc.semantics.initials import set_initials
from nlc.semantics.memories import variables
from nlc.semantics.motion_scopes import MotionScope
from nlc.semantics.motion_statements import walk
from nlc.semantics.records import Body
from nlc.semantics.resolve import Resolver
from nlc.semantics.updates import UpdateScope
from nlc.source import NOWHERE
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.ir.system import Variable

# options of a param group, which arguments of a rule would stand beside
GROUP = ("params", "lead", "level", "period", "calls")
# operations on streams of tokens
NOWHERE_ELSE = ("cross_entropy", "lookup", "attend", "shift", "conv", "route", "position")
# sizes that stand for any (and are no one else's), where a motion serves all parameters of a kind
ANY = {"in": 7919, "out": 7907}


def optimizer_rule(
    system: System, library: Mapping[str, tree.Rule], rule: tree.Rule
) -> OptimizerRule:
    """Resolve a rule for matrices, vectors and scalars."""
    motions: dict[Kind, Motion] = {}
    faults: dict[Kind, tuple[Diagnostic, ...]] = {}
    rows: list[Kind] = []
    for kind, rank in RANKS.items():
        found = motion_of(system, library, rule, _axes(rank))
        if isinstance(found, Motion):
            motions[kind] = found
        elif "matrix" in motions and all(d.code.startswith("NL04") for d in found):
            rows.append(kind)
        else:
            faults[kind] = found
    defaults = _defaults(system, library, rule)
    return OptimizerRule(rule, defaults, motions, faults, tuple(rows))


def _axes(rank: int) -> Shape:
    axes = (Axis("out", ANY["out"], role="out"), Axis("in", ANY["in"], role="in"))
    return axes[2 - rank :]


def shape_of(sizes: tuple[int, ...]) -> Shape:
    """Name the axes of a parameter with these own sizes: `in` the last, `out` the one before."""
    names = ("out", "in")[2 - len(sizes) :]
    return tuple(Axis(name, size, role=name) for name, size in zip(names, sizes, strict=True))


def _new_resolver(system: System, library: Mapping[str, tree.Rule]) -> Resolver:
    rules = {rule.name: rule for rule in system.rules}
    context = Context(graph=Graph(), faults=ClauseFaults(), dims=dict(system.dims), rules=rules)
    return Resolver(context, system.spec, library)


def motion_of(
    system: System, library: Mapping[str, tree.Rule], rule: tree.Rule, shape: Shape
) -> Motion | tuple[Diagnostic, ...]:
    """Resolve a rule for parameters of one shape, without the axes of copies."""
    resolver = _new_resolver(system, library)
    context = resolver.context
    block = BlockResolver(context, tree.Block(rule.name, (), ()), resolver)
    for parameter in rule.parameters:
        if parameter.name in GROUP:
            context.faults.error(
                "NL0806", f"an argument of an optimizer cannot be called `{parameter.name}`",
                parameter.span, "param groups use this name themselves", "choose another name",
                (rule.span, "the rule"),
            )  # fmt: skip
            return tuple(context.faults.errors)
    body = _body(rule, shape)
    arguments = {
        p.name: context.graph.make("param", name=p.name, shape=()) for p in rule.parameters
    }
    try:
        variables(block, body)
        set_initials(block, body)
        scope = MotionScope(block, body, {**arguments}, (rule.name,))
        scope.begin()
        actions = walk(scope, rule.equations)
        scope.recorder.actions = list(actions)
        scope.move_all()
        actions = tuple(scope.recorder.actions)
        if body.bad or context.faults.errors:
            return tuple(context.faults.errors)
        motion = _motion(context.graph, scope, body, actions)
        _impossible(scope, motion)
        return motion
    except Bad:
        return tuple(context.faults.errors)


def _impossible(scope: MotionScope, motion: Motion) -> None:
    """Refuse what means nothing in an optimizer, or hangs on sizes that are not known."""
    roots = expressions(motion.actions) + ([motion.evaluated] if motion.evaluated else [])
    for node in postorder(roots):
        if node.op in NOWHERE_ELSE:
            scope.context.fail(
                "NL0806", f"`{node.op}` has no meaning in an optimizer", node.span, "in this rule",
                "it belongs to streams of tokens",
            )  # fmt: skip
        if node.op == "slice":
            (axis,) = node.args[0].shape[-1:]
            if {"in", "out"} & set(axis.name.split("*")):
                scope.context.fail(
                    "NL0806", "a slice of a parameter's own axis", node.span,
                    f"`{axis.name}` is another size for each parameter",
                    "equations of an optimizer hold for any size",
                )  # fmt: skip


def _body(rule: tree.Rule, shape: Shape) -> Body:
    part = Part("", shape, Initial("constant", 0.0))
    match shape:
        case (out, into):
            part = replace(part, name="weight")
            map = Map("linear", (into,), (out,), (into, out), (part,), text="linear(in -> out)")
        case (axis,):
            map = Map("vector", (), (axis,), (axis,), (part,), text="vector(in)")
        case _:
            map = Map("scalar", (), (), (), (part,), text="scalar")
    written = tree.Memory(
        ("self",), tree.Map(map.kind), update=tree.Name(rule.name), span=rule.span
    )
    return Body("self", written, "", map, lead=(), span=rule.span, given_grad=True, rule=rule)


def _defaults(
    system: System, library: Mapping[str, tree.Rule], rule: tree.Rule
) -> tuple[tuple[str, Expr | None], ...]:
    """Resolve the defaults of arguments, each over those before it."""
    resolver = _new_resolver(system, library)
    context = resolver.context
    block = BlockResolver(context, tree.Block(rule.name, (), ()), resolver)
    body = _body(rule, ())
    before: dict[str, Expr] = {}
    found: list[tuple[str, Expr | None]] = []
    for parameter in rule.parameters:
        value: Expr | None = None
        if parameter.default is not None:
            try:
                value = UpdateScope(block, body, {**before}).plain(parameter.default)
            except Bad:
                value = None
        before[parameter.name] = context.graph.make("param", name=parameter.name, shape=())
        found.append((parameter.name, value))
    return tuple(found)


# ---- the whole ---------------------------------------------------------------------------------


def _motion(graph: Graph, scope: MotionScope, body: Body, actions: tuple[Action, ...]) -> Motion:
    assert body.rule is not None
    cells = [c for v in body.variables if v.name for c in _cells(graph, scope, body, v)]
    actions, evaluated = _evaluation(graph, body, actions, {c.name for c in cells})
    if evaluated is not None and evaluated.op == "stream" and evaluated.attr("name") == "eval":
        start = graph.make("stream", name="self.initial", shape=body.parts[0].shape)
        cells.append(Cell("eval", body.parts[0].shape, start, like=True))
    roots = expressions(actions) + ([evaluated] if evaluated is not None else [])
    read = {n.attr("name") for n in postorder(roots) if n.op == "stream"}
    for variable in body.variables:
        for part in variable.parts:
            now, before, first = (
                scope.leaf(variable.name, part, when) for when in ("now", "prev", "initial")
            )
            name = before.attr("name")
            if name in read:
                text = f"`{variable.name or 'self'}` as it is before this call"
                actions = (Set(name, now, text, NOWHERE), *actions)
            if first.attr("name") in read:
                cells.append(_held(cells, now.attr("name"), first))
    arguments = tuple(p.name for p in body.rule.parameters)
    return Motion(
        body.rule, body.parts[0].shape, arguments, tuple(cells), actions, evaluated,
        dict(scope.recorder.parts),
    )  # fmt: skip


def _cells(graph: Graph, scope: MotionScope, body: Body, variable: Variable) -> list[Cell]:
    """Make the cells of a state, one per part."""
    assert body.rule is not None
    own = body.parts[0].shape
    written = next((s for s in body.rule.states if s.name == variable.name), None)
    found = []
    for part in variable.parts:
        name = scope.cell(variable.name, part)
        like = part.shape == own if written is None else written.shape is None
        start = graph.constant(part.initial.value)
        if part.initial.kind == "expr" and part.initial.expr is not None:
            start = _at_first_call(scope, body, part.initial.expr)
        cell = Cell(name, part.shape, start, like)
        if part.initial.kind == "normal":
            cell = replace(cell, draw="normal")
        if part.initial.kind == "uniform":
            cell = replace(cell, draw="uniform", size=_fan(part))
        found.append(cell)
    return found


def _fan(part: Part) -> Axis:
    """The axis over whose size a part is drawn: the one it sums over, or that its weight does."""
    fan = round(part.initial.value)
    named = [axis for axis in part.shape if axis.size == fan]
    return named[-1] if named else Axis(_size_word(fan), fan)


def _size_word(size: int) -> str:
    """Write a size that stands for any as what it stands for: `2*in`."""
    for side, any_size in ANY.items():
        if size % any_size == 0:
            times = size // any_size
            return side if times == 1 else f"{times}*{side}"
    return str(size)


def _at_first_call(scope: MotionScope, body: Body, expr: Expr) -> Expr:
    """Put what a state begins with in the place of initial values."""
    graph = scope.graph

    def at(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "state":
            return None
        name = node.attr("var")
        if not name:
            return graph.make("stream", name="self.initial", shape=node.shape)
        variable = next(v for v in body.variables if v.name == name)
        part = next(p for p in variable.parts if p.name == node.attr("part"))
        if part.initial.kind != "constant":
            scope.context.fail(
                "NL0806", f"a state begins as `{name}`, which is drawn", expr.span,
                "in an optimizer", "begin with a number, or give the memory `init 0.1`",
            )  # fmt: skip
        if any(OPERATIONS[n.op].kind not in ("elementwise", "leaf") for n in postorder([expr])):
            scope.context.fail(
                "NL0806", f"a state begins as a function of `{name}`", expr.span,
                "in an optimizer", "begin with a number",
            )  # fmt: skip
        return graph.constant(part.initial.value)

    return rewrite(graph, [expr], at)[0]


def _held(cells: list[Cell], name: str, first: Expr) -> Cell:
    """Make the cell that holds what a name was at the first call."""
    if name == "self":
        return Cell("self.initial", first.shape, first, like=True)
    return replace(next(c for c in cells if c.name == name), name=first.attr("name"))


def _evaluation(
    graph: Graph, body: Body, actions: tuple[Action, ...], cells: set[str]
) -> tuple[tuple[Action, ...], Expr | None]:
    """Find the value read outside training: as an expression if it can be made afterwards."""
    places = [a for a in flat(actions) if isinstance(a, Set) and a.target == "eval"]
    if not places:
        return actions, None
    (last, *_) = reversed(places)
    stored = graph.make("stream", name="eval", shape=body.parts[0].shape)
    if len(places) > 1 or last not in actions:
        return actions, stored
    at = actions.index(last)
    names = {n.attr("name") for n in postorder([last.value]) if n.op == "stream"}
    later = {a.target for a in flat(actions[at + 1 :]) if isinstance(a, Set)}
    if names - cells - {"self"} or names & later:
        return actions, stored
    return (*actions[:at], *actions[at + 1 :]), last.value
