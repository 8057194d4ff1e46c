"""What a matrix that learns from the task is applied to: `key` in a rule that moves it.

In: a memory with `objective task` and one of its parts. Out: the vector that meets this part at a
token. As in an optimizer, what is no matrix of a map has no input: its key is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import ONE, sizes
from nlc.ir.system import Part
from nlc.semantics.context import several
from nlc.semantics.memories import pair_value, state_leaf
from nlc.semantics.records import Body
from nlc.semantics.trees import mentions
from nlc.semantics.updates import UpdateScope
from nlc.source import Span
from nlc.syntax import tree

if TYPE_CHECKING:
    from nlc.semantics.blocks import BlockResolver


def key_of(scope: UpdateScope, body: Body, part: Part, span: Span) -> Expr:
    """Give the input of a part of a memory at one token."""
    make = INPUTS.get(body.map.kind)
    if make is None or len(part.shape) < 2:
        zero = scope.context.number(0.0, span)
        if not part.shape:
            return zero
        places = scope.make("index", axis=part.shape[-1], span=span)
        return scope.make("mul", zero, places, span=span)
    read = _application(scope.block, body)
    x = read.args[0]
    if sizes(body.map.inputs) != (body.map.chain[0].size,):
        count = len(body.map.inputs)
        x = scope.make("reshape", x, last=count, axes=body.map.chain[:1], span=span)
    parts = {p.name: state_leaf(scope.block, body, "", p, "prev") for p in body.map.parts}
    key = make(_Layers(scope, body, parts, span), x, part.name)
    # it enters all slots alike, and what else it has one of for all copies
    axes = tuple(axis for axis in key.shape[:-1] if axis != ONE) + key.shape[-1:]
    if len(axes) == len(key.shape):
        return key
    return scope.make("reshape", key, last=len(key.shape), axes=axes, span=span)


def _application(block: BlockResolver, body: Body) -> Expr:
    """Find where a memory is applied, which must be one place."""
    roots = [equation.value for equation in block.equations]
    roots += [value for call in block.calls for _, value in call.inputs]
    for other in block.bodies.values():
        route = () if other.written.route is None else (other.written.route,)
        for written in (*other.written.keys, *other.written.values, *route):
            roots.append(pair_value(block, other, written))
    reads: list[Expr] = []
    places: list[Span] = []
    for node in postorder(roots):
        own = [a for a in node.args if a.op == "state" and a.attr("memory") == body.label]
        if own and node.op == "apply" and node.args[0] not in own:
            reads.append(node)
        elif own:
            places.append(node.span)
    for other in block.bodies.values():
        update = other.written.update if isinstance(other.written.update, tuple) else ()
        for clause in (other.written.objective, other.written.update, *update):
            if other is not body and isinstance(clause, tree.Node):
                places += [clause.span] if mentions(clause, {body.name}) else []
    more = bool(reads) and len(reads[0].args[0].shape) != len(body.map.inputs) + len(
        body.lead or ()
    )
    if len(reads) == 1 and not places and not more:
        return reads[0]
    fact = "it is applied to several vectors at each token"
    if not (more and len(reads) == 1 and not places):
        fact = f"it is read in {several(len(reads) + len(places), 'place')}"
    block.context.fail(
        "NL0503", f"`{body.name}` has no single input for `key` in its rule",
        body.span or body.written.span, fact,
        f"such a rule moves what is applied once at each token, as in `{body.name}(x)`; "
        "others need its gradient alone",
    )  # fmt: skip


@dataclass(frozen=True)
class _Layers:
    """The layers of one application; `parts` are their values as they are read."""

    scope: UpdateScope
    body: Body
    parts: Mapping[str, Expr]
    span: Span

    def affine(self, name: str, x: Expr, bias: str = "") -> Expr:
        """Return W x, plus the bias where there is one."""
        y = self.scope.make("matvec", self.parts[name], x, span=self.span)
        if bias not in self.parts:
            return y
        return self.scope.make("add", y, self.parts[bias], span=self.span)

    def act(self, x: Expr) -> Expr:
        """Apply the map's activation."""
        name = str(self.body.map.option("act"))
        return x if name == "none" else self.scope.make(name, x, span=self.span)


def _first(layers: _Layers, x: Expr, part: str) -> Expr:
    return x


def _mlp(layers: _Layers, x: Expr, part: str) -> Expr:
    for i in range(1, int(part.split(".")[0].removeprefix("layer"))):
        x = layers.act(layers.affine(f"layer{i}.weight", x, f"layer{i}.bias"))
    return x


def _glu(layers: _Layers, x: Expr, part: str) -> Expr:
    if part != "down":
        return x
    gate = layers.act(layers.affine("gate", x))
    return layers.scope.make("mul", gate, layers.affine("up", x), span=layers.span)


def _lora(layers: _Layers, x: Expr, part: str) -> Expr:
    return x if part == "down" else layers.act(layers.affine("down", x))


INPUTS: Mapping[str, Callable[[_Layers, Expr, str], Expr]] = {
    "linear": _first,
    "mlp": _mlp,
    "glu": _glu,
    "lora": _lora,
}
