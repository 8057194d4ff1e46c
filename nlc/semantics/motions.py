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
from nlc.ir.rule import RANKS, Action, Cell, Kind, Motion, OptimizerRule, Set, expressions, flat
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Initial, Map, Part, System
from nlc.semantics.blocks import BlockResolver
from nlc.semantics.context import Bad, ClauseFaults, Context
from nlc.semantics.initials import set_initials
from nlc.semantics.memories import variables
from nlc.semantics.motion_scopes import MotionScope, cell_name
from nlc.semantics.records import Body
from nlc.semantics.resolve import Resolver
from nlc.semantics.updates import UpdateScope
from nlc.source import NOWHERE
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.ir.system import Variable

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
    if rule.memories:
        context.faults.error(
            "NL0806", f"`{rule.name}` has a memory of its own", rule.memories[0].span,
            "not supported yet in an optimizer", "leave it out for now", (rule.span, "the rule"),
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
        actions = scope.walk(rule.equations)
        if body.bad or context.faults.errors:
            return tuple(context.faults.errors)
        return _motion(context.graph, scope, body, actions)
    except Bad:
        return tuple(context.faults.errors)


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
    cells = [c for v in body.variables if v.name for c in _cells(graph, body, v)]
    actions, evaluated = _evaluation(graph, body, actions, {c.name for c in cells})
    if evaluated is not None and evaluated.op == "stream" and evaluated.attr("name") == "eval":
        start = graph.make("stream", name="self.initial", shape=body.parts[0].shape)
        cells.append(Cell("eval", body.parts[0].shape, start, like=True))
    roots = expressions(actions) + ([evaluated] if evaluated is not None else [])
    names = {n.attr("name"): n for n in postorder(roots) if n.op == "stream"}
    for name in sorted(names):
        first, _, when = name.rpartition(".")
        if when == "initial":
            cells.append(_held(graph, cells, first, names[name]))
        if when == "prev":
            now = graph.make("stream", name=first, shape=names[name].shape)
            text = f"`{first}` as it is before this call"
            actions = (Set(name, now, text, NOWHERE), *actions)
    arguments = tuple(p.name for p in body.rule.parameters)
    return Motion(body.rule, body.parts[0].shape, arguments, tuple(cells), actions, evaluated)


def _cells(graph: Graph, body: Body, variable: Variable) -> list[Cell]:
    """Make the cells of a state, one per part."""
    assert body.rule is not None
    written = next((s for s in body.rule.states if s.name == variable.name), None)
    like = written is not None and written.shape is None
    found = []
    for part in variable.parts:
        name = cell_name(variable, part)
        start = graph.constant(part.initial.value)
        if part.initial.kind == "expr" and part.initial.expr is not None:
            start = _at_first_call(graph, part.initial.expr)
        found.append(Cell(name, part.shape, start, like))
    return found


def _at_first_call(graph: Graph, expr: Expr) -> Expr:
    def at(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op == "state":
            return graph.make("stream", name="self.initial", shape=node.shape)
        return None

    return rewrite(graph, [expr], at)[0]


def _held(graph: Graph, cells: list[Cell], name: str, leaf: Expr) -> Cell:
    """Make the cell that holds what a name was at the first call."""
    if name == "self":
        return Cell("self.initial", leaf.shape, leaf, like=True)
    cell = next(c for c in cells if c.name == name)
    return replace(cell, name=f"{name}.initial")


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
