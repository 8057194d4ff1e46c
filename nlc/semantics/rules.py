"""Rules by themselves: their names, and their bodies where no memory uses them.

In: the rules of a spec and its optimizers. Out: faults. A rule that no memory uses is checked on a
matrix of `out` rows and `in` columns: as an optimizer with its arguments as numbers, otherwise with
such arguments, numbers or vectors, as make it right.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from nlc.diagnostics import Diagnostic
from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Initial, Map, Part
from nlc.semantics.blocks import BlockResolver
from nlc.semantics.context import Bad, ClauseFaults, Context
from nlc.semantics.functions import RESERVED
from nlc.semantics.initials import set_initials
from nlc.semantics.memories import variables
from nlc.semantics.records import Body
from nlc.semantics.rule_scopes import RuleScope
from nlc.semantics.statements import finish, run
from nlc.semantics.updates import UpdateScope
from nlc.semantics.windows import varying
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.resolve import Resolver

# sizes that only this check sees
IN = Axis("in", 6, role="in")
OUT = Axis("out", 4, role="out")
# up to so many kinds of arguments are tried
TRIES = 81


def check_names(context: Context, rule: tree.Rule) -> None:
    """Check that arguments, states and memories of a rule have names of their own."""
    places: dict[str, Span] = {}
    names = [(p.name, p.span) for p in rule.parameters]
    names += [(s.name, s.span) for s in rule.states]
    names += [(name, memory.span) for memory in rule.memories for name in memory.names]
    for name, span in names:
        if name in RESERVED or name in ("key", "value", "eval", "in", "out"):
            context.faults.error(
                "NL0303", f"`{name}` cannot be assigned", span,
                "this name is reserved", "choose another name",
            )  # fmt: skip
        elif name in places:
            context.faults.error(
                "NL0302", f"`{name}` is declared twice", span, "again",
                "arguments, states and memories of a rule share one space of names",
                (places[name], "first here"),
            )  # fmt: skip
        places.setdefault(name, span)


def check_rules(resolver: Resolver) -> None:
    """Check the bodies of all rules that no memory has been resolved with."""
    context = resolver.context
    optimizers = {
        level.optimizer.rule: level.optimizer.span
        for level in context.levels.values()
        if level.optimizer is not None
    }
    for rule in context.rules.values():
        if rule.name in resolver.used_rules and rule.name not in optimizers:
            continue
        place = optimizers.get(rule.name)
        for diagnostic in _faults(resolver, rule, place):
            if diagnostic not in context.faults.found:
                context.faults.found.append(diagnostic)


def _faults(resolver: Resolver, rule: tree.Rule, optimizer: Span | None) -> list[Diagnostic]:
    """Find what is wrong with a rule, with the arguments that suit it best."""
    kinds: list[Shape] = [()] if optimizer is not None else [(), (IN,), (OUT,)]
    first: list[Diagnostic] | None = None
    for i, shapes in enumerate(product(kinds, repeat=len(rule.parameters))):
        if i == TRIES:
            break
        found = _attempt(resolver, rule, shapes, optimizer)
        if not found:
            return []
        first = found if first is None else first
        if not all(d.code.startswith("NL04") for d in found):
            break
    return first or []


def _attempt(
    resolver: Resolver, rule: tree.Rule, shapes: tuple[Shape, ...], optimizer: Span | None
) -> list[Diagnostic]:
    context = replace(resolver.context, faults=ClauseFaults(), unsupported=[])
    block = BlockResolver(context, tree.Block(rule.name, (), ()), resolver)
    weight = Part("weight", (OUT, IN), Initial("constant", 0.0))
    map = Map("linear", (IN,), (OUT,), (IN, OUT), (weight,), text="linear(in -> out)")
    written = tree.Memory(
        ("self",), tree.Map("linear"), update=tree.Name(rule.name), span=rule.span
    )
    body = Body("self", written, "", map, lead=(), span=rule.span, given_grad=True, rule=rule)
    key = context.graph.make("stream", name="key", shape=(IN,), span=rule.span)
    body.pairs = ((key, key),)
    arguments = {
        parameter.name: context.graph.make("param", name=parameter.name, shape=shape)
        for parameter, shape in zip(rule.parameters, shapes, strict=True)
    }
    try:
        variables(block, body)
        set_initials(block, body)
        for i, parameter in enumerate(rule.parameters):
            if parameter.default is not None:
                before = {p.name: arguments[p.name] for p in rule.parameters[:i]}
                UpdateScope(block, body, {**before}).plain(parameter.default)
        scope = RuleScope(block, body, {**arguments}, (rule.name,))
        scope.begin()
        run(scope, rule.equations)
        scope.move_all()
        if not body.bad and optimizer is not None:
            _bare_key(context, rule, [a.value for a in finish(scope)], optimizer)
    except Bad:
        pass
    return context.faults.errors


def _bare_key(context: Context, rule: tree.Rule, values: list[Expr], optimizer: Span) -> None:
    for node in varying(values):
        if node.op == "position":
            context.fail(
                "NL0605", f"`position` has no meaning in the optimizer `{rule.name}`", rule.span,
                "an optimizer sees no tokens",
                "a rule counts its calls in a state: `state n[] = 0`, `n = n + 1`",
                (optimizer, "an optimizer here"),
            )  # fmt: skip
        context.fail(
            "NL0603", f"`key` is used bare in the optimizer `{rule.name}`", rule.span,
            f"`{node.attr('name')}` differs at every token of a step",
            "reduce it over the tokens: `sum(outer(key, key), over = tokens)`",
            (optimizer, "an optimizer here"),
        )  # fmt: skip
