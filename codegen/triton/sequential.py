"""One token of a memory as one kernel: its update, whole, with the states on chip.

In: a memory's update over streams and the states before the token. Out: the text of a kernel with
a program for each sequence and copy, or why there is none. No gradients: it serves decoding, and
the token loop where nobody asks for any. Each value is a block of a copy's own axes, next to which
those shorter than a power of 2 are padded; reductions leave the padding out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Axis, Shape

Sizes = tuple[int, ...]
# what a line may hold before a part of it gets a name
INLINE = 24
RESERVED = {"tl", "triton", "torch", "copy"}


@dataclass(frozen=True)
class Value:
    """A value in a kernel: its text, and its own axes."""

    text: str
    shape: Sizes

    @property
    def plain(self) -> bool:
        """Say whether it stands as an operand without brackets."""
        return re.fullmatch(r"[\w.]+(\[[\w:, ]+\])?|tl\.\w+\([^()]*\)", self.text) is not None

    @property
    def operand(self) -> str:
        """The text beside an operator."""
        return self.text if self.plain else f"({self.text})"


class Unprintable(Exception):
    """An operation that kernels of one token do not have, in words."""


def core(shape: Shape, lead: tuple[Axis, ...]) -> Sizes:
    """The axes of one copy."""
    own = shape[len(lead) :] if lead and shape[: len(lead)] == lead else shape
    if any(axis in lead for axis in own):
        raise Unprintable("its copies are mixed")
    if len(own) > 2:
        raise Unprintable("a value has more than two axes")
    return tuple(axis.size for axis in own)


def block(size: int) -> int:
    """The power of 2 that holds a size."""
    return 1 << (size - 1).bit_length()


def joined(*shapes: Sizes) -> Sizes:
    """The axes of what is broadcast."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


UNARY: dict[str, str] = {
    "neg": "-{0}",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "abs": "tl.abs({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "erf": "tl.erf({0})",
    "sigmoid": "tl.sigmoid({0})",
    "relu": "tl.maximum({0}, 0.0)",
    "silu": "{0} * tl.sigmoid({0})",
    "tanh": "2.0 * tl.sigmoid(2.0 * {0}) - 1.0",
    "gelu": "0.5 * {0} * (1.0 + tl.erf(0.7071067811865476 * {0}))",
    "softplus": "tl.maximum({0}, 0.0) + tl.log(1.0 + tl.exp(-tl.abs({0})))",
    "sign": "tl.where({0} > 0, 1.0, 0.0) - tl.where({0} < 0, 1.0, 0.0)",
}
BINARY: dict[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "maximum": "tl.maximum({0}, {1})",
    "minimum": "tl.minimum({0}, {1})",
    "lt": "tl.where({0} < {1}, 1.0, 0.0)",
    "le": "tl.where({0} <= {1}, 1.0, 0.0)",
    "gt": "tl.where({0} > {1}, 1.0, 0.0)",
    "ge": "tl.where({0} >= {1}, 1.0, 0.0)",
    "eq": "tl.where({0} == {1}, 1.0, 0.0)",
    "ne": "tl.where({0} != {1}, 1.0, 0.0)",
}


@dataclass
class TokenPrinter:
    """Prints the values of one token's update, a line for what is used twice or long."""

    lead: tuple[Axis, ...]
    out: Writer
    comments: dict[Expr, list[str]]
    names: Names = field(default_factory=lambda: Names(set(RESERVED)))
    known: dict[Expr, Value] = field(default_factory=dict)
    channels: dict[int, str] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    # ---- pieces --------------------------------------------------------------------------------

    def along(self, size: int) -> str:
        """The numbers of an axis' entries, made at the head of the kernel."""
        if size not in self.channels:
            self.channels[size] = self.names.fresh(f"c{size}")
        return self.channels[size]

    def name(self, value: Value, wanted: str) -> Value:
        """Give a value a line of its own."""
        if value.text.isidentifier():
            return value
        text = self.names.fresh(wanted)
        line = f"{text} = {value.text}"
        sizes = ", ".join(map(str, value.shape))
        about = f"  # [{sizes}]" if value.shape else ""
        self.out.line(line + about if len(line + about) <= self.out.room else line)
        return Value(text, value.shape)

    def short(self, value: Value, wanted: str = "x") -> Value:
        """Name what is too long to stand in a line with others."""
        return value if len(value.text) <= INLINE else self.name(value, wanted)

    def indexed(self, value: Value, index: list[str], shape: Sizes) -> Value:
        """A value with further axes."""
        if not value.shape:
            return Value(value.text, shape)
        named = self.short(value)
        return Value(f"{named.operand}[{', '.join(index)}]", shape)

    def mask(self, value: Value, places: list[int]) -> str:
        """Which entries of some axes are no padding; "" where all are."""
        found = []
        rank = len(value.shape)
        for place in places:
            size = value.shape[place]
            if block(size) != size:
                index = ["None"] * rank
                index[place] = ":"
                name = self.along(size)
                name = name if rank == 1 else f"{name}[{', '.join(index)}]"
                found.append(f"{name} < {size}")
        return found[0] if len(found) == 1 else " & ".join(f"({text})" for text in found)

    def reduced(
        self, value: Value, axes: tuple[int, ...], keep: bool, how: str = "sum", empty: str = "0.0"
    ) -> Value:
        """A reduction that leaves padding out."""
        rank = len(value.shape)
        places = sorted({axis % rank for axis in axes}) if rank else []
        if rank < max((-a for a in axes), default=0):
            raise Unprintable("it reduces over its copies")
        mask = self.mask(value, places)
        if mask:
            value = self.short(value)
            value = Value(f"tl.where({mask}, {value.text}, {empty})", value.shape)
            value = self.name(value, "own")
        for place in reversed(places):
            left = tuple(n for i, n in enumerate(value.shape) if i != place)
            value = Value(f"tl.{how}({value.text}, {place})", left)
            if keep:
                index = [":"] * len(left)
                index.insert(place, "None")
                full = (*left[:place], 1, *left[place:])
                value = self.name(value, "total") if left else value
                value = self.indexed(value, index, full) if left else Value(value.text, ())
        return self.name(value, "total")

    def times(self, a: Value, b: Value) -> Value:
        a, b = self.short(a), self.short(b)
        return Value(f"{a.operand} * {b.operand}", joined(a.shape, b.shape))

    def column(self, x: Value) -> Value:
        return self.indexed(x, [":", "None"], (*x.shape, 1))

    def row(self, x: Value) -> Value:
        return self.indexed(x, ["None", ":"], (1, *x.shape))

    def vector(self, x: Value) -> Value:
        """A vector, also where it is one for all copies and has an axis in their place."""
        if len(x.shape) != 2 or x.shape[0] != 1:
            return x
        text = x.text.removesuffix("[None, :]")
        return Value(text if text != x.text else f"tl.sum({x.text}, 0)", x.shape[1:])

    def matvec(self, A: Value, x: Value) -> Value:
        """A x."""
        x = self.vector(x)
        self.ranks(A, 2, x, 1)
        return self.reduced(self.times(A, self.row(x)), (-1,), False)

    def matvec_turned(self, A: Value, x: Value) -> Value:
        """A^T x."""
        x = self.vector(x)
        self.ranks(A, 2, x, 1)
        return self.reduced(self.times(A, self.column(x)), (-2,), False)

    def outer(self, a: Value, b: Value) -> Value:
        """a b^T."""
        a, b = self.vector(a), self.vector(b)
        self.ranks(a, 1, b, 1)
        return self.times(self.column(a), self.row(b))

    def ranks(self, a: Value, m: int, b: Value, n: int) -> None:
        if len(a.shape) != m or len(b.shape) != n:
            raise Unprintable("it multiplies what is no matrix or vector of one copy")

    def diagonal(self, size: int, value: str) -> Value:
        c = self.along(size)
        return Value(f"tl.where({c}[:, None] == {c}[None, :], {value}, 0.0)", (size, size))

    # ---- values --------------------------------------------------------------------------------

    def run(self, roots: list[Expr]) -> list[Value]:
        """Print all that the roots need."""
        uses: dict[Expr, int] = {}
        nodes = list(postorder(roots))
        for node in nodes:
            for arg in node.args:
                uses[arg] = uses.get(arg, 0) + 1
        # equation by equation, as they are written
        for node in self.comments:
            if node in uses or node in roots:
                self.value(node, uses)
        return [self.value(root, uses) for root in roots]

    def value(self, node: Expr, uses: dict[Expr, int]) -> Value:
        """Print one value, arguments first."""
        if node in self.known:
            return self.known[node]
        for line in self.comments.get(node, []):
            if line not in self.said:
                self.said.add(line)
                self.out.comment(line)
        args = list(node.args)
        if node.op == "matmul":
            # what multiplies from the side may be a sum of simple matrices
            found = self.product(args[0], args[1], lambda e: self.value(e, uses))
        else:
            found = self.made(node, [self.value(arg, uses) for arg in args])
        if node.op == "let":
            found = self.name(found, str(node.attr("name")).replace("self", "new"))
        elif len(found.text) > INLINE or (uses.get(node, 0) > 1 and node.op != "const"):
            found = self.name(found, "x")
        self.known[node] = found
        return found

    def made(self, node: Expr, args: list[Value]) -> Value:
        """The value of an operation."""
        op = node.op
        if op == "const":
            return Value(_text(float(node.attr("value"))), ())
        if op in ("let", "stop"):
            return args[0]
        if op in UNARY or op in BINARY or op == "where":
            if all(isinstance(_number(arg), float) for arg in node.args):
                raise Unprintable("it computes with numbers alone")
            args = [self.name(a, "x") if len(a.text) > INLINE else a for a in args]
            shape = joined(*(a.shape for a in args))
            words = [a.operand for a in args]
            if op == "where":
                return Value(f"tl.where({words[0]} != 0, {words[1]}, {words[2]})", shape)
            return Value((UNARY.get(op) or BINARY[op]).format(*words), shape)
        match op:
            case "pow":
                return self.power(args[0], _number(node.args[1]))
            case "sum" | "mean" | "max" | "min" | "norm":
                return self.reduction(node, args[0])
            case "unit":
                norm = self.reduction(node, args[0], "norm")
                divisor = f"tl.maximum({norm.text}, {node.attr('eps')})"
                return Value(f"{self.short(args[0]).operand} / {divisor}", args[0].shape)
            case "rmsnorm":
                x = self.name(self.short(args[0]), "x")
                square = self.reduction(node, self.times(x, x), "mean")
                return Value(f"{x.text} / tl.sqrt({square.text} + {node.attr('eps')})", x.shape)
            case "dot":
                return self.reduced(self.times(args[0], args[1]), (-1,), False)
            case "matvec":
                return self.matvec(args[0], args[1])
            case "apply":
                form = node.attr("map")
                if form.kind != "linear" or len(args) != 2:
                    raise Unprintable(f"it applies a map `{form.kind}`")
                return self.matvec(args[1], args[0])
            case "outer":
                return self.outer(args[0], args[1])
            case "transpose":
                self.ranks(args[0], 2, args[0], 2)
                turned = (args[0].shape[1], args[0].shape[0])
                return Value(f"tl.trans({args[0].text})", turned)
            case "diag":
                self.ranks(args[0], 1, args[0], 1)
                return self.diagonal(args[0].shape[0], self.column(args[0]).text)
            case "identity":
                return self.diagonal(node.shape[0].size, "1.0")
            case "unsqueeze":
                return self.unsqueezed(node, args[0])
        raise Unprintable(f"kernels of one token have no `{op}`")

    def reduction(self, node: Expr, x: Value, how: str = "") -> Value:
        """A reduction over axes."""
        how = how or node.op
        axes = node.attr("axes") if node.has("axes") else (-1,)
        keep = how != node.op or (node.has("keep") and bool(node.attr("keep")))
        x = self.short(x)
        if len(x.shape) < max(-a for a in axes):
            raise Unprintable("it reduces over its copies")
        match how:
            case "norm":
                square = self.times(self.name(x, "x"), self.name(x, "x"))
                total = self.reduced(square, axes, keep)
                return self.name(Value(f"tl.sqrt({total.text})", total.shape), "norm")
            case "mean":
                count = 1
                for axis in axes:
                    count *= x.shape[axis]
                total = self.reduced(x, axes, keep)
                return Value(f"{total.operand} / {count}", total.shape)
            case "max":
                return self.reduced(x, axes, keep, "max", 'float("-inf")')
            case "min":
                return self.reduced(x, axes, keep, "min", 'float("inf")')
        return self.reduced(x, axes, keep)

    def unsqueezed(self, node: Expr, x: Value) -> Value:
        if not x.shape:
            return x
        # those further left stand in the place of copies
        axes = [a for a in node.attr("axes") if a >= -2]
        if len(x.shape) + len(axes) > 2:
            x = self.vector(x)
        rank = len(x.shape) + len(axes)
        new = {a % rank for a in axes}
        if rank > 2:
            raise Unprintable("a value has more than two axes")
        rest = iter(x.shape)
        shape = tuple(1 if i in new else next(rest) for i in range(rank))
        return self.indexed(x, ["None" if i in new else ":" for i in range(rank)], shape)

    def power(self, x: Value, exponent: float | None) -> Value:
        x = self.short(x)
        if exponent == 0.5:
            return Value(f"tl.sqrt({x.text})", x.shape)
        if exponent in (2.0, 3.0, 4.0):
            x = self.name(x, "x")
            return Value(" * ".join([x.operand] * int(exponent or 0)), x.shape)
        if exponent == -1.0:
            return Value(f"1.0 / {x.operand}", x.shape)
        raise Unprintable("kernels of one token have no such power")

    def product(self, a: Expr, b: Expr, value: Callable[[Expr], Value]) -> Value:
        """A product of matrices, one of which is a sum of diagonals and outer products."""
        for node, left in ((b, False), (a, True)):
            other = a if node is b else b
            if _simple(node):
                return self._simple_product(node, value(other), left, value)
        raise Unprintable("it multiplies whole matrices")

    def _simple_product(
        self, node: Expr, other: Value, left: bool, value: Callable[[Expr], Value]
    ) -> Value:
        other = self.name(other, "X")
        match node.op:
            case "let" | "stop":
                return self._simple_product(node.args[0], other, left, value)
            case "identity":
                return other
            case "diag":
                w = value(node.args[0])
                return self.times(other, self.column(w) if left else self.row(w))
            case "outer":
                u, v = map(value, node.args)
                if left:
                    return self.name(self.outer(u, self.matvec_turned(other, v)), "x")
                return self.name(self.outer(self.matvec(other, u), v), "x")
            case "neg":
                x = self._simple_product(node.args[0], other, left, value)
                return Value(f"-{self.short(x).operand}", x.shape)
            case _:
                parts = [
                    self.short(self._simple_product(arg, other, left, value)) for arg in node.args
                ]
                shape = joined(*(p.shape for p in parts))
                return Value(BINARY[node.op].format(*(p.operand for p in parts)), shape)


def _simple(node: Expr) -> bool:
    match node.op:
        case "identity" | "diag" | "outer":
            return True
        case "add" | "sub" | "neg" | "let" | "stop":
            return all(_simple(arg) for arg in node.args)
    return False


def _number(node: Expr) -> float | None:
    return float(node.attr("value")) if node.op == "const" else None


def _text(value: float) -> str:
    return repr(value) if value >= 0 else f"({value!r})"
