"""Maps applied to streams, as programs: a module's call for weights, plain products for states.

In: an `apply` node and the values of x and of the map's parts. Out: the value. One row of `MAPS`
per kind of map.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from nlc.codegen import library
from nlc.codegen.lowering import Lowering, batch_of, is_wide, rank_of
from nlc.codegen.program import note
from nlc.codegen.spelling import SPELLING
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, sizes
from nlc.ir.system import Map


def flat_input(low: Lowering, form: Map, x: fx.Node) -> fx.Node:
    """Make the map's input axes one; a single number gets an axis."""
    if len(form.inputs) == 1:
        return x
    if not form.inputs:
        shape = (*x.meta["shape"], form.chain[0])
        return low.mark(low.program.method("unsqueeze", x, -1), shape, x)
    inner = unsplit(x, len(form.inputs))
    if inner is not None:
        return inner
    shape = (*x.meta["shape"][: rank_of(x) - len(form.inputs)], form.chain[0])
    return low.mark(low.program.method("flatten", x, -len(form.inputs)), shape, x)


def unsplit(x: fx.Node, count: int) -> fx.Node | None:
    """What was split into its last axes just before, where it was."""
    if x.op != "call_method" or x.target != "unflatten":
        return None
    inner, _, axes = x.args
    if isinstance(axes, tuple) and len(axes) == count:
        return inner if isinstance(inner, fx.Node) and "shape" in inner.meta else None
    return None


def split_output(low: Lowering, form: Map, y: fx.Node) -> fx.Node:
    """Split the result into the map's output axes."""
    if len(form.outputs) == 1:
        return y
    shape = (*y.meta["shape"][:-1], *form.outputs)
    if not form.outputs:
        return low.mark(low.program.method("squeeze", y, -1), shape, y)
    return low.mark(low.program.method("unflatten", y, -1, sizes(form.outputs)), shape, y)


def apply_module(low: Lowering, expr: Expr, path: str) -> fx.Node:
    """Call the module of some weights: `self.W_q(x)`."""
    form: Map = expr.attr("map")
    x = low.tensor(expr.args[0])
    if form.kind != "table":
        x = low.narrow(flat_input(low, form, x))
    elif not x.meta.get("integer"):
        x = low.mark(low.program.method("long", x), x.meta["shape"], x)
    node = low.program.module(path, x)
    out = form.chain[-1]
    if form.kind == "table":
        return note(node, expr.shape, batch_of(x))
    note(node, (*x.meta["shape"][:-1], out), batch_of(x), is_wide(low.like))
    return split_output(low, form, node)


def apply_parts(low: Lowering, expr: Expr, parts: Mapping[str, fx.Node]) -> fx.Node:
    """Apply a map whose parts are values: one copy per leading axis."""
    form: Map = expr.attr("map")
    x = low.tensor(expr.args[0])
    if form.kind == "table":
        if not x.meta.get("integer"):
            x = low.mark(low.program.method("long", x), x.meta["shape"], x)
        return low.mark(
            low.program.call(library.table_rows, parts["weight"], x), expr.shape, parts["weight"], x
        )
    site = Site(low, form, parts, int(expr.attr("lead")))
    y = MAPS[form.kind](site, flat_input(low, form, x))
    return split_output(low, form, y)


def applied(low: Lowering, expr: Expr) -> fx.Node:
    """Apply a map whose parts are what stands beside its argument."""
    form: Map = expr.attr("map")
    values = [low.tensor(part) for part in expr.args[1:]]
    return apply_parts(low, expr, {p.name: v for p, v in zip(form.parts, values, strict=True)})


class Site:
    """One application: the map, its parts and how many axes lead."""

    def __init__(self, low: Lowering, form: Map, parts: Mapping[str, fx.Node], lead: int):
        self.low, self.form, self.parts, self.lead = low, form, parts, lead

    def times(self, name: str, x: fx.Node, bias: str = "") -> fx.Node:
        """W x, plus the bias where there is one."""
        weight = self.parts[name]
        if bias in self.parts and not self.lead and not batch_of(weight):
            low, shape = self.low, (*x.meta["shape"][:-1], weight.meta["shape"][-2])
            x, weight, offset = same_type(low, x, weight, self.parts[bias])
            return low.mark(low.program.call(F.linear, x, weight, offset), shape, x, weight)
        y = times(self.low, weight, x, self.lead)
        return self.plus(y, bias) if bias in self.parts else y

    def plus(
        self, y: fx.Node, name: str, operation: Callable[..., object] = operator.add
    ) -> fx.Node:
        """Combine with a vector of the map, which has no further axes."""
        low, offset = self.low, self.parts[name]
        more = rank_of(y) - rank_of(offset)
        if self.lead or batch_of(offset):
            for _ in range(more):
                offset = low.unsqueeze(offset, batch_of(offset) + self.lead)
        y, offset = low.align([y, offset])
        return low.mark(low.program.call(operation, y, offset), y.meta["shape"], y, offset)

    def act(self, x: fx.Node, default: str) -> fx.Node:
        """The map's activation."""
        name = str(self.form.option("act", default))
        return x if name == "none" else elementwise(self.low, name, x)


def elementwise(low: Lowering, name: str, x: fx.Node) -> fx.Node:
    """One elementwise operation by name, outside of any expression."""
    leaf = Expr("stream", (), (), x.meta["shape"])
    value = SPELLING[name](low, Expr(name, (leaf,), (), x.meta["shape"]), [x])
    assert isinstance(value, fx.Node)
    return value


def same_type(low: Lowering, *values: fx.Node) -> list[fx.Node]:
    """Make all wide where one is."""
    if not any(map(is_wide, values)):
        return list(values)
    return [low.widen(v) for v in values]


def times(low: Lowering, weight: fx.Node, x: fx.Node, lead: int) -> fx.Node:
    """W x: weight [*lead, m, k], x [*lead, *more, k] -> [*lead, *more, m]."""
    weight, x = same_type(low, weight, x)
    shape: Shape = (*x.meta["shape"][:-1], weight.meta["shape"][-2])
    more = rank_of(x) - 1 - lead
    in_weight, in_x = batch_of(weight), batch_of(x)
    if in_weight == 0 and lead == 0:
        return low.mark(low.program.call(F.linear, x, weight), shape, x, weight)
    if more == 0 and (in_weight == in_x or in_x == 0 or (in_weight == 0 and in_x == 1)):
        return low.mark(low.program.call(library.matvec, weight, x), shape, weight, x)
    if more == 0 and (in_weight, in_x) == (1, 2) and x.meta["shape"][-1].size > 1:
        return low.mark(low.program.call(library.matvecs, weight, x), shape, weight, x)
    # letters: batch, time, then the leading axes, further ones, in and out
    leading, further = "hgfe"[:lead], "nmlk"[:more]
    left = "bt"[:in_weight] + leading + "oi"
    right = "bt"[:in_x] + leading + further + "i"
    result = "bt"[: max(in_weight, in_x)] + leading + further + "o"
    pattern = f"{left},{right}->{result}"
    return low.mark(low.program.call(torch.einsum, pattern, weight, x), shape, weight, x)


def _linear(site: Site, x: fx.Node) -> fx.Node:
    return site.times("weight", x, "bias")


def _mlp(site: Site, x: fx.Node) -> fx.Node:
    y, layers = x, len(site.form.chain) - 1
    for layer in range(1, layers + 1):
        y = site.times(f"layer{layer}.weight", y, f"layer{layer}.bias")
        y = site.act(y, "gelu") if layer < layers else y
    if site.form.option("norm", False):
        low = site.low
        y = low.mark(low.program.call(library.layernorm, y), y.meta["shape"], y)
        y = site.plus(site.plus(y, "norm.weight", operator.mul), "norm.bias")
    if site.form.option("residual", False):
        low = site.low
        y = low.mark(low.program.call(operator.add, x, y), y.meta["shape"], x, y)
    return y


def _glu(site: Site, x: fx.Node) -> fx.Node:
    gate, up = site.act(site.times("gate", x), "silu"), site.times("up", x)
    product = site.low.mark(
        site.low.program.call(operator.mul, gate, up), gate.meta["shape"], gate, up
    )
    return site.times("down", product)


def _lora(site: Site, x: fx.Node) -> fx.Node:
    up = "up" if "up" in site.parts else "up.weight"
    return site.times(up, site.act(site.times("down", x), "none"), "up.bias")


MAPS: dict[str, Callable[[Site, fx.Node], fx.Node]] = {
    "linear": _linear,
    "mlp": _mlp,
    "glu": _glu,
    "lora": _lora,
}
