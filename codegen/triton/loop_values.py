"""The values of one token as blocks of Triton, a line for what is used twice or long.

In: the graph of one token, or its gradients. Out: lines of a kernel. A block has the axes of one
copy that are longer than 1; `places` say where these stand, counted from the right, so that an
axis of size 1 is never made. Blocks are padded to powers of 2, or have a program's part of an axis;
sums and the like leave out what is beyond.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.triton.loop_split import permuted, reshaped, unsqueezed
from nlc.codegen.triton.operations import BINARY, INLINE, UNARY, Unprintable, block
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Shape

# further operations of one value, which gradients need
SLOPES = {"silu_slope": "tl.sigmoid({0}) * (1.0 + {0} * (1.0 - tl.sigmoid({0})))"}
# the text of numbers that Triton has no constant for
INFINITE = {"max": 'float("-inf")', "min": 'float("inf")'}


@dataclass(frozen=True)
class Dim:
    """An axis of a block: its place from the right, its size, whether a program has a part."""

    place: int
    size: int
    split: bool = False


Dims = tuple[Dim, ...]


@dataclass(frozen=True)
class Block:
    """A value: its text, and its axes in order."""

    text: str
    dims: Dims = ()

    @property
    def operand(self) -> str:
        """The text beside an operator."""
        plain = re.fullmatch(r"[\w.]+(\[[\w:, ]+\])?|tl\.\w+\([^()]*\)|\(-[\w.+-]+\)", self.text)
        return self.text if plain else f"({self.text})"


@dataclass
class Frame:
    """What lines of a kernel share: names, and the numbers of axes' entries.

    `part` is how many entries of the split axis a program has, as text; `least` the smallest block.
    """

    lead: Shape
    names: Names
    least: int = 1
    numbers: dict[tuple[int, bool], str] = field(default_factory=dict)
    # where the entries of a matrix stand: text -> name
    entries: dict[str, str] = field(default_factory=dict)

    def dims(self, shape: Shape, split: Iterable[int] = ()) -> Dims:
        """The axes of a value in a block."""
        places = set(split)
        found = []
        for place in range(-len(shape), 0):
            axis = shape[place]
            if axis.size > 1 and axis not in self.lead:
                found.append(Dim(place, axis.size, place in places))
        return tuple(found)

    def along(self, dim: Dim) -> str:
        """The numbers of an axis' entries, made at the head of the kernel."""
        key = (dim.size, dim.split)
        if key not in self.numbers:
            self.numbers[key] = self.names.fresh(f"{'r' if dim.split else 'c'}{dim.size}")
        return self.numbers[key]

    def block(self, dim: Dim) -> str:
        """The length of an axis in a block."""
        return "V" if dim.split else str(max(self.least, block(dim.size)))

    def padded(self, dim: Dim) -> bool:
        """Say whether a block may have entries that are none."""
        return dim.split or max(self.least, block(dim.size)) != dim.size

    def placed(self, text: str, dim: Dim, dims: Dims) -> str:
        """A vector along one of several axes."""
        if len(dims) == 1:
            return text
        return f"{text}[{', '.join(':' if d == dim else 'None' for d in dims)}]"

    def mask(self, dims: Dims, among: Iterable[Dim] | None = None) -> str:
        """Which entries are none beyond an axis' end; "" where all are within."""
        wanted = [d for d in (dims if among is None else among) if self.padded(d)]
        found = [f"{self.placed(self.along(d), d, dims)} < {d.size}" for d in wanted]
        return found[0] if len(found) == 1 else " & ".join(f"({text})" for text in found)

    def offset(self, start: str, shape: Shape, dims: Dims) -> str:
        """Where the entries of a value stand, given where those of its copy begin."""
        strides, total = {}, 1
        for place in range(-1, -len(shape) - 1, -1):
            if shape[place] in self.lead:
                break
            strides[place] = total
            total *= shape[place].size
        words = []
        for dim in dims:
            word = self.placed(self.along(dim), dim, dims)
            stride = strides[dim.place]
            words.append(word if stride == 1 else f"{word} * {stride}")
        own = " + ".join(words)
        if len(dims) > 1:
            if own not in self.entries:
                sizes = "_".join(str(d.size) for d in dims)
                self.entries[own] = self.names.fresh(f"e{sizes}")
            own = self.entries[own]
        first = start if total == 1 else f"{start} * {total}"
        return f"{first} + {own}" if own else first


def joined(*many: Dims) -> Dims:
    """The axes of what is broadcast."""
    found: dict[int, Dim] = {}
    for dims in many:
        for dim in dims:
            other = found.setdefault(dim.place, dim)
            if other != dim:
                raise Unprintable("an axis is both whole and in part")
    return tuple(found[place] for place in sorted(found))


@dataclass
class ValuePrinter:
    """Prints values; `known` are those that are there already.

    Of gradients, `forward` are the values of the way forward that they need, which come first.
    """

    frame: Frame
    out: Writer
    known: dict[Expr, Block]
    comments: Mapping[Expr, list[str]]
    forward: set[Expr] | None = None
    # on the way back a sum over copies is left to whoever adds their shares
    shares: bool = False
    uses: dict[Expr, int] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    called: dict[Expr, str] = field(default_factory=dict)
    prefix: str = "x"
    hidden: set[int] = field(default_factory=set)

    def run(self, roots: list[Expr]) -> list[Block]:
        """Print all that the roots need, equation by equation."""
        done = {id(node) for node in self.known}
        wanted = set()
        read = {id(root) for root in roots}
        for node in postorder(roots, done):
            wanted.add(node)
            for i, arg in enumerate(node.args):
                self.uses[arg] = self.uses.get(arg, 0) + 1
                if node.op != "matvec" or i > 0:
                    read.add(id(arg))
            if node.op == "let":
                name = str(node.attr("name")).replace("self", "new")
                self.called.setdefault(node.args[0], name)
        # A^T x is made without turning A
        turned = [node for node in wanted if node.op == "transpose" and id(node) not in read]
        self.known |= {node: Block("") for node in turned}
        self.hidden = {id(node) for node in turned}
        for node in self.comments:
            if node in wanted:
                for line in self.comments[node]:
                    if line not in self.said:
                        self.said.add(line)
                        self.out.comment(line)
                self.values([node])
        if self.forward is not None:
            self.values([node for node in postorder(roots, done) if node in self.forward])
            self.out.comment("gradients")
        self.values(roots)
        return [self.known[root] for root in roots]

    def values(self, roots: list[Expr]) -> None:
        """Print values, arguments first."""
        # what is turned is not made, but what it is made of
        done = {id(node) for node in self.known} - self.hidden
        for node in postorder(roots, done):
            if id(node) not in self.hidden:
                self.value(node)

    def name(self, value: Block, wanted: str = "") -> Block:
        """Give a value a line of its own."""
        if value.text.isidentifier():
            return value
        text = self.frame.names.fresh(wanted or self.prefix)
        line = f"{text} = {value.text}"
        sizes = ", ".join("V" if d.split else str(d.size) for d in value.dims)
        about = f"  # [{sizes}]" if value.dims else ""
        self.out.line(line + about if len(line + about) <= self.out.room else line)
        return Block(text, value.dims)

    def short(self, value: Block) -> Block:
        """Name what is too long to stand in a line with others."""
        return value if len(value.text) <= INLINE else self.name(value)

    def value(self, node: Expr) -> None:
        """Print one value, whose arguments are there."""
        self.prefix = "x" if self.forward is None or node in self.forward else "dx"
        found = self.made(node, [self.known[arg] for arg in node.args])
        long = len(found.text) > INLINE or self.uses.get(node, 0) > 1 or node in self.called
        if node.op != "const" and long:
            found = self.name(found, self.called.get(node, ""))
        self.known[node] = found

    # ---- axes ----------------------------------------------------------------------------------

    def fitted(self, value: Block, dims: Dims) -> str:
        """An operand with the axes of the result."""
        if value.dims == dims or not value.dims:
            return value.operand
        value = self.short(value)
        index = ", ".join(":" if d in value.dims else "None" for d in dims)
        return f"{value.operand}[{index}]"

    def entrywise(self, text: str, *args: Block) -> Block:
        """An operation entry by entry."""
        dims = joined(*(a.dims for a in args))
        shorts = [self.short(a) for a in args]
        if len(args) > 2:
            # three must fit a line
            shorts = [self.name(a) if len(a.text) > INLINE // 2 else a for a in shorts]
        return Block(text.format(*(self.fitted(a, dims) for a in shorts)), dims)

    def moved(self, x: Block, to: Callable[[int], int]) -> Block:
        """The same entries with axes at other places."""
        dims = tuple(Dim(to(d.place), d.size, d.split) for d in x.dims)
        order = sorted(range(len(dims)), key=lambda i: dims[i].place)
        if order == list(range(len(dims))):
            return Block(x.text, dims)
        turned = tuple(dims[i] for i in order)
        if len(dims) == 2:
            return Block(f"tl.trans({x.text})", turned)
        return Block(f"tl.permute({x.text}, {tuple(order)})", turned)

    def within(self, x: Block, places: set[int], fill: str = "0.0") -> Block:
        """A value whose padding along some axes is replaced."""
        mask = self.frame.mask(x.dims, [d for d in x.dims if d.place in places])
        if not mask:
            return x
        x = self.short(x)
        return self.name(Block(f"tl.where({mask}, {x.text}, {fill})", x.dims), "own")

    def reduced(self, x: Block, places: set[int], how: str = "sum") -> Block:
        """A sum, or the largest or smallest entry, over axes; the others stay where they are."""
        fill = INFINITE.get(how, "0.0")
        x = self.within(x, places, fill)
        for i in reversed([i for i, d in enumerate(x.dims) if d.place in places]):
            dims = (*x.dims[:i], *x.dims[i + 1 :])
            x = Block(f"tl.{how}({x.text}, {i})", dims)
        return self.name(x, "total") if "(" in x.text else x

    # ---- operations ----------------------------------------------------------------------------

    def made(self, node: Expr, args: list[Block]) -> Block:
        """The value of an operation."""
        op = node.op
        if op in UNARY or op in BINARY or op in SLOPES:
            if all(arg.op == "const" for arg in node.args):
                raise Unprintable("it computes with numbers alone")
            text = UNARY.get(op) or BINARY.get(op) or SLOPES[op]
            # an argument that stands there more than once
            args = [self.name(a) if text.count(f"{{{i}}}") > 1 else a for i, a in enumerate(args)]
            return self.entrywise(text, *args)
        match op:
            case "gelu_slope":
                x = self.name(args[0])
                share = self.name(
                    self.entrywise("0.5 * (1.0 + tl.erf(0.7071067811865476 * {0}))", x)
                )
                density = self.entrywise("0.3989422804014327 * tl.exp(-0.5 * {0} * {0})", x)
                return self.entrywise("{0} + {1} * {2}", share, x, self.name(density))
            case "const":
                number = float(node.attr("value"))
                return Block(repr(number) if number >= 0 else f"({number!r})")
            case "let" | "stop":
                return args[0]
            case "where":
                return self.entrywise("tl.where({0} != 0, {1}, {2})", *args)
            case "pow":
                return self.power(args[0], node.args[1])
            case "dot":
                x = self.entrywise("{0} * {1}", *args)
                return self.moved(self.reduced(x, {-1}), lambda p: p + 1)
            case "matvec":
                return self.matvec(node, args)
            case "matmul":
                return self.matmul(*args)
            case "outer":
                left = self.moved(args[0], lambda p: p - 1)
                right = self.moved(args[1], lambda p: p if p == -1 else p - 1)
                return self.entrywise("{0} * {1}", left, right)
            case "transpose":
                return self.moved(args[0], lambda p: {-1: -2, -2: -1}.get(p, p))
            case "unsqueeze" | "reshape" | "permute":
                table = {"unsqueeze": unsqueezed, "reshape": reshaped, "permute": permuted}
                return self.moved(args[0], table[op](node).__getitem__)
            case "diag":
                w = self.moved(args[0], lambda p: p - 1)
                return self.diagonal(w, w.dims[-1])
            case "identity" | "index":
                dims = self.frame.dims(node.shape, node.attr("split") if node.has("split") else ())
                if op == "index":
                    return Block(f"{self.frame.along(dims[0])}.to(tl.float32)", dims)
                c, r = (self.frame.placed(self.frame.along(d), d, dims) for d in dims)
                return Block(f"tl.where({c} == {r}, 1.0, 0.0)", dims)
        if len(args) != 1:
            raise Unprintable(f"kernels of loops have no `{op}`")
        return self.reduction(node, args[0])

    def diagonal(self, w: Block, dim: Dim) -> Block:
        """A vector, which stands as a column, on the diagonal of a matrix."""
        dims = (*w.dims, Dim(dim.place + 1, dim.size))
        c = self.frame.along(dims[-1])
        rows, columns = (self.frame.placed(c, d, dims) for d in dims[-2:])
        return Block(f"tl.where({rows} == {columns}, {self.fitted(w, dims)}, 0.0)", dims)

    def matvec(self, node: Expr, args: list[Block]) -> Block:
        """A x; A^T x without turning A."""
        A, x = args
        left = node.args[0]
        if id(left) in self.hidden:
            A, at = self.known[left.args[0]], -2
            x = self.moved(x, lambda p: p - 1)
        else:
            at = -1
            x = self.moved(x, lambda p: p if p == -1 else p - 1)
        product = self.reduced(self.entrywise("{0} * {1}", A, x), {at})
        return self.moved(product, lambda p: p if p > at else p + 1)

    def matmul(self, a: Block, b: Block) -> Block:
        """A product of whole matrices."""
        if [d.place for d in a.dims] != [-2, -1] or [d.place for d in b.dims] != [-2, -1]:
            raise Unprintable("it multiplies what are no two matrices of one copy")
        a, b = self.within(a, {-1}), self.within(b, {-2})
        text = f'tl.dot({a.text}, {b.text}, input_precision="ieee")'
        return self.name(Block(text, (a.dims[0], b.dims[1])), "product")

    def power(self, x: Block, exponent: Expr) -> Block:
        if exponent.op != "const":
            raise Unprintable("kernels have no powers that are values")
        power = float(exponent.attr("value"))
        if power == 0.5:
            return self.entrywise("tl.sqrt({0})", x)
        if power == int(power) and 0 < abs(power) <= 8:
            x = self.name(x)
            product = " * ".join([x.text] * int(abs(power)))
            return Block(product if power > 0 else f"1.0 / ({product})", x.dims)
        if power == int(power):
            raise Unprintable("kernels have no such power")
        return self.entrywise(f"tl.exp({power!r} * tl.log({{0}}))", x)

    def reduction(self, node: Expr, x: Block) -> Block:
        """A reduction over axes, which may be kept with size 1."""
        (arg,) = node.args
        rank = len(arg.shape)
        axes = node.attr("axes") if node.has("axes") else (-1,)
        places = {a % rank - rank for a in axes}
        if not self.shares and any(arg.shape[p] in self.frame.lead for p in places):
            raise Unprintable("it reduces over its copies")
        count = 1
        for place in places:
            count *= arg.shape[place].size
        x = self.short(x)
        match node.op:
            case "unit":
                norm = self.norm(x, places)
                return self.entrywise(f"{{0}} / tl.maximum({{1}}, {node.attr('eps')})", x, norm)
            case "rmsnorm":
                x = self.name(x)
                scale = self.mean(self.entrywise("{0} * {0}", x), places, count)
                return self.entrywise(f"{{0}} / tl.sqrt({{1}} + {node.attr('eps')})", x, scale)
            case "layernorm":
                mean = self.mean(x, places, count)
                x = self.name(self.entrywise("{0} - {1}", x, mean))
                scale = self.mean(self.entrywise("{0} * {0}", x), places, count)
                return self.entrywise(f"{{0}} / tl.sqrt({{1}} + {node.attr('eps')})", x, scale)
            case "softmax":
                most = self.reduced(x, places, "max")
                x = self.name(self.entrywise("tl.exp({0} - {1})", x, most))
                return self.entrywise("{0} / {1}", x, self.reduced(x, places))
        match node.op:
            case "sum" | "max" | "min":
                found = self.reduced(x, places, node.op)
            case "mean":
                found = self.mean(x, places, count)
            case "norm":
                found = self.norm(x, places)
            case "logsumexp":
                most = self.reduced(x, places, "max")
                total = self.reduced(self.entrywise("tl.exp({0} - {1})", x, most), places)
                found = self.entrywise("tl.log({0}) + {1}", total, most)
            case _:
                raise Unprintable(f"kernels of loops have no `{node.op}`")
        if node.has("keep") and node.attr("keep"):
            return found
        return self.moved(found, lambda p: p + sum(q > p for q in places))

    def norm(self, x: Block, places: set[int]) -> Block:
        x = self.name(x)
        total = self.reduced(self.entrywise("{0} * {0}", x), places)
        return self.name(self.entrywise("tl.sqrt({0})", total), "norm")

    def mean(self, x: Block, places: set[int], count: int) -> Block:
        return self.name(self.entrywise(f"{{0}} / {count}", self.reduced(x, places)), "mean")
