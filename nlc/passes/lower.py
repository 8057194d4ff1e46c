"""Write every application of a map as primitive operations.

In: expressions with `apply`. Out: the same without (or without some). x [*lead, *more, *inputs]
meets parts [*lead, *part]: the parts get axes of size 1 where x has further ones. Does not choose
layouts; a map's input axes become one before, and its output axes are split after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nlc.errors import InternalError
from nlc.ir.expr import Expr, Graph, rewrite
from nlc.ir.shape import Axis, Shape, sizes
from nlc.ir.system import Map
from nlc.source import Span


def lower(
    graph: Graph, roots: Iterable[Expr], only: Callable[[Expr], bool] | None = None
) -> list[Expr]:
    """Replace every `apply` by the operations of its map.

    With `only`, those alone that depend on a leaf for which it holds: the rest are coefficients,
    and stay as they were written.

    >>> from nlc.ir.shape import Axis
    >>> from nlc.ir.system import Initial, Map, Part
    >>> g, a, b = Graph(), (Axis("a", 2),), (Axis("b", 3),)
    >>> linear = Map("linear", a, b, (*a, *b), (Part("weight", (*b, *a), Initial("constant")),))
    >>> x = g.make("stream", name="x", shape=a)
    >>> W = g.make("param", name="W.weight", shape=(*b, *a))
    >>> [y] = lower(g, [g.make("apply", x, W, map=linear, lead=0)])
    >>> y.op, y.args == (W, x)
    ('matvec', True)
    """

    depends: set[int] = set()

    def replace(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if only is None:
            return _apply(graph, node, args) if node.op == "apply" else None
        if not (only(node) or any(id(arg) in depends for arg in args)):
            return None
        if node.op == "apply":
            node = _apply(graph, node, args)
        elif args != node.args:
            node = graph.make(node.op, *args, span=node.span, **dict(node.attrs))
        depends.add(id(node))
        return node

    return rewrite(graph, roots, replace)


@dataclass(frozen=True)
class _Site:
    """One application: `parts` by name, with axes for `more`; `rank` counts those of a vector."""

    graph: Graph
    map: Map
    parts: Mapping[str, Expr]
    span: Span

    def make(self, op: str, *args: Expr, **attrs: Any) -> Expr:
        """Make an expression at the application's place."""
        return self.graph.make(op, *args, span=self.span, **attrs)

    def affine(self, name: str, x: Expr, bias: str = "") -> Expr:
        """Return W x, plus the bias where there is one."""
        y = self.make("matvec", self.parts[name], x)
        return self.make("add", y, self.parts[bias]) if bias in self.parts else y

    def act(self, x: Expr, default: str) -> Expr:
        """Apply the map's activation."""
        name = str(self.map.option("act", default))
        return x if name == "none" else self.make(name, x)


def _apply(graph: Graph, node: Expr, args: tuple[Expr, ...]) -> Expr:
    form: Map = node.attr("map")
    lead: int = node.attr("lead")
    x, *parts = args
    more = len(x.shape) - lead - len(form.inputs)
    named = {
        part.name: _with_more(graph, value, len(part.shape), more if lead else 0)
        for part, value in zip(form.parts, parts, strict=True)
    }
    site = _Site(graph, form, named, node.span)
    if form.kind not in MAPS:
        raise InternalError(f"a map of kind {form.kind} is not applied to a stream")
    if form.kind == "table":
        return MAPS[form.kind](site, x)
    y = MAPS[form.kind](site, _flatten(graph, x, form.inputs, form.chain[0]))
    if sizes(form.outputs) != (form.chain[-1].size,):
        y = graph.make("reshape", y, span=node.span, last=1, axes=form.outputs)
    return y


def _flatten(graph: Graph, x: Expr, inputs: Shape, axis: Axis) -> Expr:
    if sizes(inputs) == (axis.size,):
        return x
    return graph.make("reshape", x, last=len(inputs), axes=(axis,))


def _with_more(graph: Graph, part: Expr, rank: int, more: int) -> Expr:
    """Put `more` axes of size 1 between a part's leading axes and its own."""
    if more == 0:
        return part
    return graph.make("unsqueeze", part, axes=tuple(range(-rank - more, -rank)))


def _linear(site: _Site, x: Expr) -> Expr:
    return site.affine(site.map.parts[0].name, x, "bias")


def _mlp(site: _Site, x: Expr) -> Expr:
    layers = len(site.map.chain) - 1
    y = x
    for i in range(1, layers + 1):
        y = site.affine(f"layer{i}.weight", y, f"layer{i}.bias")
        if i < layers:
            y = site.act(y, "gelu")
    if site.map.option("norm", False):
        y = site.make("layernorm", y, axes=(-1,), eps=1e-5)
        y = site.make("mul", y, site.parts["norm.weight"])
        y = site.make("add", y, site.parts["norm.bias"])
    return site.make("add", x, y) if site.map.option("residual", False) else y


def _glu(site: _Site, x: Expr) -> Expr:
    gate = site.act(site.affine("gate", x), "silu")
    return site.affine("down", site.make("mul", gate, site.affine("up", x)))


def _lora(site: _Site, x: Expr) -> Expr:
    inner = site.act(site.affine("down", x), "none")
    if "up" in site.parts:
        return site.affine("up", inner)
    return site.affine("up.weight", inner, "up.bias")


def _table(site: _Site, x: Expr) -> Expr:
    return site.make("lookup", site.parts[site.map.parts[0].name], x)


MAPS: Mapping[str, Callable[[_Site, Expr], Expr]] = {
    "linear": _linear,
    "matrix": _linear,
    "mlp": _mlp,
    "glu": _glu,
    "lora": _lora,
    "table": _table,
}
