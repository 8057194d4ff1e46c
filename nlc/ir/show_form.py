"""Write a normal form as equations, in the names of the spec.

    S' = a * S + e k^T          the new state: what is kept of the old ones, and what is written
    e  = beta * (v - a * S @ k)

In: an `Affine` form of one part of a memory. Out: `Line`s, each a name and the signed terms of its
sum. A factor that all terms of a write have is taken out, a write that is one known vector stands
where it goes, and a state of one row is written without matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Affine, Gate, Write
from nlc.ir.show import part_name, plain, show_expr

# a known vector longer than this has a line of its own
SHORT = 24


@dataclass(frozen=True)
class Line:
    """`name = term + term - term`; a term is (sign, text), the sign "+" or "-"."""

    name: str
    terms: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The right side on one line."""
        return joined(self.terms)


def joined(terms: tuple[tuple[str, str], ...]) -> str:
    """Write a sum.

    >>> joined((("-", "a"), ("+", "b")))
    '-a + b'
    """
    if not terms:
        return "0"
    (sign, first), *rest = terms
    head = f"-{first}" if sign == "-" else first
    return head + "".join(f" {s} {t}" for s, t in rest)


@dataclass(frozen=True)
class Product:
    """A signed product: a number, factors of one number for each copy, and vectors."""

    number: float = 1.0
    scalars: tuple[Expr, ...] = ()
    vectors: tuple[Expr, ...] = ()

    def times(self, other: Product) -> Product:
        """Multiply."""
        return Product(
            self.number * other.number,
            self.scalars + other.scalars,
            self.vectors + other.vectors,
        )


def product_of(expr: Expr, vector: bool, names: Mapping[int, str]) -> Product:
    """Split a product into its factors; `vector` says that the last axis is one of a vector.

    What has a name stays whole.
    """
    match expr.op:
        case "neg" if id(expr) not in names:
            return Product(-1.0).times(product_of(expr.args[0], vector, names))
        case "mul" if id(expr) not in names:
            return reduce(Product.times, (product_of(arg, vector, names) for arg in expr.args))
        case "const":
            return Product(float(expr.attr("value")))
        case "unsqueeze":
            inside = vector and -1 not in expr.attr("axes")
            return product_of(expr.args[0], inside, names)
        case "let" if not expr.args[0].args:
            return product_of(expr.args[0], vector, names)
    if vector and expr.shape and expr.shape[-1].size > 1:
        return Product(1.0, (), (expr,))
    return Product(1.0, (expr,))


def summands(expr: Expr, names: Mapping[int, str], sign: float = 1.0) -> list[tuple[float, Expr]]:
    """Split a sum into its signed terms; what has a name stays whole."""
    match expr.op:
        case "add" | "sub" if id(expr) not in names:
            left, right = expr.args
            other = -sign if expr.op == "sub" else sign
            return summands(left, names, sign) + summands(right, names, other)
        case "neg" if id(expr) not in names:
            return summands(expr.args[0], names, -sign)
        case _:
            return [(sign, expr)]


def form_lines(
    form: Affine,
    memory: str,
    rank: int,
    names: Mapping[int, str] | None = None,
    taken: set[str] | None = None,
) -> list[Line]:
    """Write all lines of a form; `rank` is that of the state: a matrix, a row or a number.

    `names` are short names of nodes, by id; a write has a name that is not in `taken`.
    """
    word = next(name for name in ("e", "err", "write") if name not in (taken or ()))
    return _Form(form, memory, rank, names or {}, word).lines()


@dataclass
class _Form:
    form: Affine
    memory: str
    rank: int
    names: Mapping[int, str]
    word: str
    writes: list[str | None] = field(default_factory=list)

    def lines(self) -> list[Line]:
        """The states, then the writes that have names."""
        single = [self.inline(number) for number in range(len(self.form.writes))]
        named = [n for n, product in enumerate(single) if product is None]
        self.writes = [
            None
            if n not in named
            else self.word + (str(named.index(n) + 1) if len(named) > 1 else "")
            for n in range(len(self.form.writes))
        ]
        states = [
            Line(f"{name}'", tuple(self.row(j, single))) for j, name in enumerate(self.states)
        ]
        return states + [
            Line(str(self.writes[n]), tuple(self.written(self.form.writes[n]))) for n in named
        ]

    @property
    def states(self) -> list[str]:
        """The states' names: the memory's, those of extra ones, with the part that they are."""
        return [
            ".".join(w for w in (var or self.memory, part_name(part)) if w)
            for var, part in self.form.states
        ]

    def product(self, expr: Expr, vector: bool) -> Product:
        """Split a product into its factors."""
        return product_of(expr, vector, self.names)

    def show(self, expr: Expr, least: str = "") -> str:
        """Write an expression; in brackets if it is a sum, or with `least` any operation."""
        text = show_expr(expr, names=self.names)
        weak = expr_is(plain(expr), SUMS if not least else OPERATIONS, self.names)
        return f"({text})" if weak else text

    # ---- writes --------------------------------------------------------------------------------

    def inline(self, number: int) -> Product | None:
        """Return what is written, where it is one known vector and short."""
        write = self.form.writes[number]
        seen = any(s == number for w in self.form.writes for s, _ in w.earlier)
        if not write.known or write.offset is None or seen:
            return None
        terms = summands(write.offset, self.names)
        if len(terms) != 1:
            return None
        sign, expr = terms[0]
        found = Product(sign).times(self.product(expr, self.rank == 2))
        if self.rank == 2 and expr.shape[-1].size == 1 and found.scalars and not found.vectors:
            # a matrix of one row: its one number is the vector
            *rest, last = found.scalars
            found = Product(found.number, tuple(rest), (last,))
        return found if len(self.term(found, "")[1]) <= SHORT else None

    def written(self, write: Write) -> list[tuple[str, str]]:
        """What is written: known vectors, reads of states, earlier writes of the token."""
        terms: list[tuple[Product, str]] = []
        if write.offset is not None:
            for sign, expr in summands(write.offset, self.names):
                terms.append((Product(sign).times(self.product(expr, self.rank == 2)), ""))
        for name, p in zip(self.states, write.reads, strict=True):
            if p is not None:
                product = self.product(p, self.rank >= 1)
                asked = self.vectors(product.vectors, "all") or "1"
                read = f"<{name}, {asked}>" if self.rank == 1 else f"{name} @ {asked}"
                read = f"{name}^T @ {asked}" if self.form.transposed else read
                read = name if self.rank == 0 else read
                terms.append((Product(product.number, product.scalars), read))
        for s, c in write.earlier:
            terms.append((self.product(c, False), str(self.writes[s])))
        return self.factored(terms)

    def factored(self, terms: list[tuple[Product, str]]) -> list[tuple[str, str]]:
        """Take out the factors that all terms have."""
        common: list[Expr] = []
        if len(terms) > 1:
            rest = [list(product.scalars) for product, _ in terms]
            for scalar in terms[0][0].scalars:
                if all(_holds(scalars, scalar) for scalars in rest):
                    common.append(scalar)
                    for scalars in rest:
                        _drop(scalars, scalar)
            terms = [
                (Product(product.number, tuple(scalars), product.vectors), read)
                for (product, read), scalars in zip(terms, rest, strict=True)
            ]
        number = abs(terms[0][0].number)
        if len(terms) > 1 and number != 1.0 and all(abs(p.number) == number for p, _ in terms):
            terms = [
                (Product(product.number / number, product.scalars, product.vectors), read)
                for product, read in terms
            ]
        else:
            number = 1.0
        # a sum begins with what is added
        terms.sort(key=lambda term: term[0].number < 0)
        signed = tuple(self.term(product, read) for product, read in terms)
        if not common and number == 1.0:
            return list(signed)
        words = [f"{number:g}"] if number != 1.0 else []
        outside = " * ".join([*words, *(self.show(scalar) for scalar in common)])
        if all(sign == "-" for sign, _ in signed):
            signed = tuple(("+", text) for _, text in signed)
            return [("-", f"{outside} * ({joined(signed)})")]
        return [("+", f"{outside} * ({joined(signed)})")]

    # ---- terms ---------------------------------------------------------------------------------

    def term(self, product: Product, body: str) -> tuple[str, str]:
        """Write a signed product before a body."""
        words = [self.show(scalar) for scalar in product.scalars]
        if abs(product.number) != 1.0:
            words.insert(0, f"{abs(product.number):g}")
        words += [self.vectors(product.vectors)] if product.vectors else []
        words += [body] if body else []
        return "-" if product.number < 0 else "+", " * ".join(words) or "1"

    def vectors(self, vectors: tuple[Expr, ...], least: str = "") -> str:
        """Write vectors multiplied entry by entry; with `least` as one operand."""
        if len(vectors) == 1:
            return self.show(vectors[0], least)
        text = " * ".join(self.show(vector) for vector in vectors)
        return f"({text})" if least and text else text

    # ---- states --------------------------------------------------------------------------------

    def row(self, j: int, single: list[Product | None]) -> list[tuple[str, str]]:
        """The new value of a state."""
        terms = [
            self.kept(gate, name)
            for gate, name in zip((row[j] for row in self.form.decay), self.states, strict=True)
            if gate is not None
        ]
        for write, known, name in zip(self.form.writes, single, self.writes, strict=True):
            target = write.targets[j]
            if target is not None:
                terms.append(self.outer(self.product(target, self.rank >= 1), known, name))
        return terms

    def kept(self, gate: Gate, name: str) -> tuple[str, str]:
        """What is kept of a state."""
        product = self.product(gate.value, gate.kind == "diagonal")
        if gate.kind == "scalar" or self.rank < 2:
            return self.term(product, name)
        w = self.vectors(product.vectors) or "1"
        number = Product(product.number, product.scalars)
        if self.form.transposed:
            return self.term(number, f"diag({w}) @ {name}")
        sign, text = self.term(number, name)
        return sign, f"{text} @ diag({w})"

    def outer(self, b: Product, known: Product | None, name: str | None) -> tuple[str, str]:
        """What a write leaves in a state."""
        if self.rank < 2:
            if known is not None:
                return self.term(known.times(b), "")
            body = " * ".join(w for w in (str(name), self.vectors(b.vectors)) if w)
            return self.term(Product(b.number, b.scalars), body)
        along = self.vectors(b.vectors, "all") or "1"
        if known is None:
            number, what = Product(b.number, b.scalars), str(name)
        else:
            number = Product(b.number * known.number, known.scalars + b.scalars)
            what = self.vectors(known.vectors, "all") or "1"
        pair = f"{along} {what}^T" if self.form.transposed else f"{what} {along}^T"
        return self.term(number, pair)


SUMS = {"add", "sub", "lt", "le", "gt", "ge", "eq", "ne"}
OPERATIONS = SUMS | {"mul", "div", "neg", "pow", "matvec", "matmul"}


def expr_is(expr: Expr, operations: set[str], names: Mapping[int, str]) -> bool:
    """Say whether an expression is written out and is one of some operations."""
    return id(expr) not in names and expr.op in operations


def _holds(found: list[Expr], wanted: Expr) -> bool:
    return any(plain(expr) is plain(wanted) for expr in found)


def _drop(found: list[Expr], wanted: Expr) -> None:
    for place, expr in enumerate(found):
        if plain(expr) is plain(wanted):
            del found[place]
            return
