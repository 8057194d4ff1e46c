"""Sums and means over the tokens of a step, for rules that use a map's input.

In: an expression in which `key` is the input at one token. Out: a text in which it is the input at
all of them, an axis in front of an expression's own. What is linear is taken out of the sum, so
that the sum of `outer(key, key)` is one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.codegen.rules.elements import CALL, ELEMENTS, Element, Site
from nlc.codegen.rules.numbers import PRODUCT

from nlc.ir.expr import Expr, postorder

if TYPE_CHECKING:
    from nlc.codegen.rules.each import EachWriter

LINEAR = frozenset(["neg", "unsqueeze", "transpose", "stop", "let", "sum", "reshape"])
# linear in each of two arguments
BILINEAR = frozenset(["mul", "outer", "matvec", "matmul", "dot"])


def varies(expr: Expr) -> bool:
    """Say whether an expression is another at each token."""
    return any(n.op == "stream" and n.attr("name") == "key" for n in postorder([expr]))


@dataclass
class TokenWriter:
    """Writes one reduction; `how` is sum or mean."""

    writer: EachWriter
    site: Site
    lists: dict[str, str]
    how: str

    @property
    def count(self) -> str:
        """The number of tokens."""
        return f"{self.key()}.shape[0]"

    def key(self) -> str:
        """The inputs of one map."""
        return self.writer.bound(self.writer.text("key"), self.lists).text

    def over(self, x: Expr) -> Element:
        """Write the reduction of x."""
        if not varies(x):
            whole = self.free(x)
            if self.how == "mean":
                return whole
            return Element(f"{self.count} * {whole.within(PRODUCT + 1)}", PRODUCT)
        moving = [varies(a) for a in x.args]
        if x.op in LINEAR or x.op in ("add", "sub"):
            return ELEMENTS[x.op](self.site, x, [self.over(a) for a in x.args])
        one = moving.count(True) == 1
        if one and (x.op in BILINEAR or (x.op == "div" and moving[0])):
            pairs = zip(x.args, moving, strict=True)
            args = [self.over(a) if moves else self.free(a) for a, moves in pairs]
            return ELEMENTS[x.op](self.site, x, args)
        if x.op == "outer" and not x.args[0].shape[1:]:
            a, b = (self.each(arg) for arg in x.args)
            product = Element(f"{a.within(CALL)}.mT @ {b.within(PRODUCT + 1)}", PRODUCT)
            if self.how == "mean":
                return Element(f"{product.text} / {self.count}", PRODUCT)
            return product
        return Element(f"{self.each(x).within(CALL)}.{self.how}({-1 - len(x.shape)})")

    def free(self, x: Expr) -> Element:
        """Write what is the same at all tokens."""
        return self.writer.element(x, self.site, self.lists)

    def each(self, x: Expr) -> Element:
        """Write x at all tokens."""
        if x.op == "stream" and x.attr("name") == "key":
            return Element(self.key())
        if not varies(x):
            whole = self.free(x)
            if whole.kind == "number":
                return whole
            axes = ", ".join(["...", "None", *([":"] * len(x.shape))])
            return Element(f"{whole.within(CALL)}[{axes}]")
        return ELEMENTS[x.op](self.site, x, [self.each(a) for a in x.args])
