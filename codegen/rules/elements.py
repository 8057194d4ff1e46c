"""Operations on one tensor of a list, as text: what stands in front of `for` in a comprehension.

In: an operation, the texts of its arguments. Out: a text. One row of `ELEMENTS` per operation; axes
are counted from the right, so that the axes of copies may stand in front. `add`, `mul` and the like
have rows too, for what is inside of something that works tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nlc.codegen.rules.numbers import (
    COMPARE,
    POWER,
    PRODUCT,
    SUM,
    UNARY,
    Number,
    literal,
)  # fmt: skip

from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, sizes

CALL = 17


@dataclass(frozen=True)
class Element:
    """A text with how strongly it binds: a tensor, a comparison's result, or a plain number."""

    text: str
    strength: int = CALL
    kind: Literal["tensor", "bool", "number"] = "tensor"

    def within(self, least: int) -> str:
        """The text, in brackets if it binds less than `least`."""
        return f"({self.text})" if self.strength < least else self.text


@dataclass
class Site:
    """Where an element's text stands: what it calls, and a tensor for its device and type."""

    like: str
    used: set[str] = field(default_factory=set)
    # how the parameter's sizes are called, where they have names
    sizes: tuple[str, str] | None = None

    def library(self, name: str, *args: str) -> Element:
        """Call a function of the library."""
        self.used.add(name)
        return Element(f"{name}({', '.join(args)})")

    def size(self, axis: Axis) -> str:
        """The size of an axis: of the parameter, or a number."""
        words = re.split(r"\W+", axis.name)
        if not {"in", "out"} & set(words):
            return str(axis.size)
        into, out = self.sizes or (f"{self.like}.shape[-1]", f"{self.like}.shape[-2]")
        known = {"in": into, "out": out}
        return " * ".join(known.get(word, word) for word in words)


# what torch calls as the language does
LIKE_TORCH = ("exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "erf")

Row = Callable[[Site, Expr, Sequence[Element]], Element]


def of_number(number: Number) -> Element:
    """A plain number as an element."""
    return Element(number.text, number.strength, "number")


def real(site: Site, x: Element) -> Element:
    """A comparison as 1 and 0."""
    return Element(f"({x.text}).to({site.like}.dtype)") if x.kind == "bool" else x


def _unary(name: str) -> Row:
    return lambda site, expr, args: Element(f"{name}({real(site, args[0]).text})")


def _infix(sign: str, strength: int) -> Row:
    def row(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
        a, b = (real(site, x) for x in args)
        return Element(f"{a.within(strength)} {sign} {b.within(strength + 1)}", strength)

    return row


def _compare(sign: str) -> Row:
    def row(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
        a, b = (real(site, x).within(COMPARE + 1) for x in args)
        return Element(f"{a} {sign} {b}", COMPARE, "bool")

    return row


def _neg(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return Element(f"-{real(site, args[0]).within(UNARY)}", UNARY)


def _pow(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    a, b = (real(site, x) for x in args)
    left, right = a.within(POWER + 1), b.within(UNARY)
    # as formatters have it: no spaces between simple names and numbers
    simple = all(re.fullmatch(r"-?[\w.]+", side) for side in (left, right))
    return Element(f"{left}**{right}" if simple else f"{left} ** {right}", POWER)


def _extreme(pair: str, clamp: str) -> Row:
    def row(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
        a, b = (real(site, x) for x in args)
        if expr.args[1].op == "const" or expr.args[0].op == "const":
            x, bound = (b, a) if expr.args[0].op == "const" else (a, b)
            return Element(f"{x.within(CALL)}.{clamp}({bound.text})")
        return Element(f"{pair}({a.text}, {b.text})")

    return row


def _where(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    condition, yes, no = args
    if yes.kind == no.kind == "number":
        yes = site.library("number", yes.text, site.like)
    test = condition.text if condition.kind == "bool" else f"{condition.within(COMPARE + 1)} != 0"
    return Element(f"torch.where({test}, {real(site, yes).text}, {real(site, no).text})")


def _axes(expr: Expr) -> str:
    rank = len(expr.args[0].shape)
    axes = tuple(a if a < 0 else a - rank for a in expr.attr("axes"))
    return str(axes[0]) if len(axes) == 1 else str(axes)


def _reduction(method: str) -> Row:
    def row(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
        x = real(site, args[0])
        if not expr.attr("axes"):
            return Element(f"torch.abs({x.text})") if method == "norm" else x
        keep = ", keepdim=True" if expr.has("keep") and expr.attr("keep") else ""
        if method == "norm":
            return Element(f"torch.linalg.vector_norm({x.text}, dim={_axes(expr)}{keep})")
        if method == "logsumexp":
            return Element(f"torch.logsumexp({x.text}, {_axes(expr)}{keep})")
        return Element(f"{x.within(CALL)}.{method}({_axes(expr)}{keep})")

    return row


def _normalise(name: str, usual: float | None) -> Row:
    def row(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
        x = real(site, args[0])
        words: list[str] = []
        if not expr.attr("axes"):
            alone = site.library(name, f"{x.within(CALL)}[..., None]", *words)
            return Element(f"{alone.text}[..., 0]")
        if _axes(expr) != "-1":
            words.append(f"dim={_axes(expr)}")
        if usual is not None and expr.has("eps") and expr.attr("eps") != usual:
            words.append(f"eps={literal(expr.attr('eps')).text}")
        return site.library(name, x.text, *words)

    return row


def _layernorm_slope(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    x, g = (real(site, a) for a in args)
    if not expr.attr("axes"):
        return Element(f"torch.zeros_like({x.text})")
    words = [] if _axes(expr) == "-1" else [f"dim={_axes(expr)}"]
    words += [] if expr.attr("eps") == 1e-5 else [f"eps={literal(expr.attr('eps')).text}"]
    return site.library("layernorm_slope", x.text, g.text, *words)


def _dot(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    a, b = (x.within(PRODUCT) for x in args)
    return Element(f"({a} * {b}).sum(-1)")


def _library(name: str) -> Row:
    return lambda site, expr, args: site.library(name, *(real(site, a).text for a in args))


def _transpose(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return Element(f"{args[0].within(CALL)}.mT")


def _unsqueeze(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    new = {a if a < 0 else a - len(expr.shape) for a in expr.attr("axes")}
    places = ", ".join("None" if place in new else ":" for place in range(min(new), 0))
    return Element(f"{real(site, args[0]).within(CALL)}[..., {places}]")


def _reshape(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    (x,), last, axes = args, int(expr.attr("last")), expr.attr("axes")
    old = expr.args[0].shape[len(expr.args[0].shape) - last :]
    if sizes(old) == sizes(axes):
        return x
    text = x.within(CALL)
    if last == 0:
        text = f"{text}[..., None]"
    if last > 1:
        text = f"{text}.flatten(-{last})"
    if not axes:
        return Element(f"{text}[..., 0]")
    if len(axes) > 1:
        text = f"{text}.unflatten(-1, ({', '.join(site.size(a) for a in axes)}))"
    return Element(text)


def _permute(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    rank = len(expr.shape)
    order = tuple(i - rank for i in expr.attr("order"))
    if order == tuple(range(-rank, 0)):
        return args[0]
    return Element(f"{args[0].within(CALL)}.movedim({order}, {tuple(range(-rank, 0))})")


def _slice(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return Element(f"{args[0].within(CALL)}[..., {expr.attr('start')}:{expr.attr('stop')}]")


def _solve(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    if expr.attr("vector"):
        return site.library("solve_vector", *(a.text for a in args))
    return Element(f"torch.linalg.solve({', '.join(a.text for a in args)})")


def _index(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return site.library("index", site.size(expr.attr("axis")), site.like)


def _identity(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return site.library("identity", site.size(expr.attr("axis")), site.like)


def _same(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return args[0]


def newton_schulz_words(expr: Expr) -> str:
    """Write the settings of an orthogonalisation."""
    given = expr.attr("coefficients")
    triples = given if isinstance(given[0], tuple) else (given,)
    triples = triples[:1] if len(set(triples)) == 1 else triples
    return f"{int(expr.attr('steps'))}, {triples}, {float(expr.attr('eps'))!r}"


def _newton_schulz(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    return site.library("newton_schulz", args[0].text, newton_schulz_words(expr))


def _impossible(site: Site, expr: Expr, args: Sequence[Element]) -> Element:
    raise AssertionError(f"{expr.op} does not stand in an optimizer")


ELEMENTS: Mapping[str, Row] = {
    "neg": _neg,
    **{name: _unary(f"torch.{name}") for name in LIKE_TORCH},
    "relu": _unary("torch.relu"),
    "silu": _unary("F.silu"),
    "gelu": _unary("F.gelu"),
    "gelu_slope": _library("gelu_slope"),
    "silu_slope": _library("silu_slope"),
    "softplus": _library("softplus"),
    "add": _infix("+", SUM),
    "sub": _infix("-", SUM),
    "mul": _infix("*", PRODUCT),
    "div": _infix("/", PRODUCT),
    "pow": _pow,
    "maximum": _extreme("torch.maximum", "clamp_min"),
    "minimum": _extreme("torch.minimum", "clamp_max"),
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "eq": _compare("=="),
    "ne": _compare("!="),
    "where": _where,
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "max": _reduction("amax"),
    "min": _reduction("amin"),
    "logsumexp": _reduction("logsumexp"),
    "norm": _reduction("norm"),
    "softmax": _normalise("softmax", None),
    "unit": _normalise("unit", 1e-12),
    "rmsnorm": _normalise("rmsnorm", 1e-6),
    "layernorm": _normalise("layernorm", 1e-5),
    "layernorm_slope": _layernorm_slope,
    "dot": _dot,
    "matvec": _library("matvec"),
    "matmul": _infix("@", PRODUCT),
    "outer": _library("outer"),
    "transpose": _transpose,
    "diag": _unary("torch.diag_embed"),
    "reshape": _reshape,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "concat": _library("concat"),
    "slice": _slice,
    "solve": _solve,
    "newton_schulz": _newton_schulz,
    "eig_values": _library("eig_values"),
    "eig_vectors": _library("eig_vectors"),
    "rotate": _library("rotate"),
    "index": _index,
    "identity": _identity,
    "stop": lambda site, expr, args: Element(f"{args[0].within(CALL)}.detach()"),
    "let": _same,
    # leaves, which whoever writes the text takes over, and what no optimizer has
    **dict.fromkeys(["const", "param", "stream"], _impossible),
    **dict.fromkeys(
        ["position", "state", "variable", "apply", "grad", "ask", "attend", "shift", "window",
         "due", "route", "conv", "lookup", "cross_entropy"],
        _impossible,
    ),
}  # fmt: skip
