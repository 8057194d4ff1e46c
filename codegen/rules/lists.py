"""Equations over lists of tensors, in torch's multi-tensor operations.

In: an expression over lists, one tensor for each parameter, and plain numbers. Out: statements. A
sum is brought into the form of scaled tensors, products and quotients, and becomes as few passes
over memory as torch has operations for (`mul`, `add` with a factor, `addcmul`, `addcdiv`), in place
where the target itself is a term. What torch has no multi-tensor form of runs tensor by tensor.
"""

from __future__ import annotations

import re

from nlc.codegen.rules.each import BINARY, UNARY, EachWriter, over_lists
from nlc.codegen.rules.elements import CALL, Site, newton_schulz_words, real
from nlc.codegen.rules.numbers import ONE, Number, negative, over, plus, times
from nlc.codegen.rules.sums import Sum, Tensors, Term
from nlc.codegen.writer import WIDTH, split_call

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape, sizes

# what gives a view of what it is given
LAYOUT = frozenset(["transpose", "unsqueeze", "reshape", "permute", "slice", "stop", "let"])


class ListWriter(EachWriter):
    """Writes the statements of one method."""

    # ---- sums ------------------------------------------------------------------------------

    def sum_of(self, expr: Expr, factor: Number = ONE, into: Sum | None = None) -> Sum:
        """Bring an expression into the form of a sum, times a factor."""
        found = Sum() if into is None else into
        if self.is_number(expr):
            found.number = plus(found.number, times(factor, self.number(expr)))
            return found
        if expr.op in ("stop", "let") and self.uses[expr] < 2:
            return self.sum_of(expr.args[0], factor, found)
        shared = self.uses[expr] > 1 and expr.op != "stream"
        if not shared:
            match expr.op, expr.args:
                case "add" | "sub", (a, b) if _spreads(expr):
                    self.sum_of(a, factor, found)
                    self.sum_of(b, negative(factor) if expr.op == "sub" else factor, found)
                    return found
                case "neg", (a,):
                    return self.sum_of(a, negative(factor), found)
                case "mul", (a, b) if self.is_number(a):
                    return self.sum_of(b, times(factor, self.number(a)), found)
                case "mul", (a, b) if self.is_number(b):
                    return self.sum_of(a, times(factor, self.number(b)), found)
                case "div", (a, b) if self.is_number(b):
                    return self.sum_of(a, over(factor, self.number(b)), found)
                case "mul" | "div" | "pow", _:
                    term = self._product(expr, factor)
                    if term is not None:
                        found.add(term)
                        return found
        found.add(Term(factor, expr.shape, self.tensors(expr)))
        return found

    def _product(self, expr: Expr, factor: Number) -> Term | None:
        """Write a product of two lists, a square or a quotient as a term."""
        a, b = expr.args
        if expr.op == "pow":
            if not (b.op == "const" or b.op == "unsqueeze") or not self.is_number(b):
                return None
            if self.number(b).value != 2:
                return None
            x = self.tensors(a)
            return Term(factor, expr.shape, x, "*", x)
        if expr.op == "div" and self.is_number(a):
            return Term(times(factor, self.number(a)), expr.shape, self._reciprocal(b))
        (f, x), (g, y) = self._single(a), self._single(b)
        if expr.op == "mul":
            return Term(times(times(factor, f), g), expr.shape, x, "*", y)
        return Term(over(times(factor, f), g), expr.shape, x, "/", y)

    def _single(self, expr: Expr) -> tuple[Number, Tensors]:
        """Take an expression as a number times one list."""
        found = self.sum_of(expr)
        if len(found.terms) == 1 and found.number.value == 0 and not found.terms[0].sign:
            return found.terms[0].factor, found.terms[0].a
        # it is a sum after all: its parts are there already
        made = self._made(found, expr.shape, self.uses[expr] < 2)
        self.memo[expr] = made
        return ONE, made

    def _reciprocal(self, expr: Expr) -> Tensors:
        x = self.tensors(expr)
        if x.fresh:
            self.call("reciprocal_", x.name)
            return x
        return self.assign("reciprocal", x.name, shape=expr.shape)

    # ---- lists -----------------------------------------------------------------------------

    def tensors(self, expr: Expr) -> Tensors:
        """Compute an expression as a list."""
        if expr.op == "stream":
            return Tensors(self.text(expr.attr("name")), expr.shape)
        if expr not in self.memo:
            made = self._compute(expr)
            if self.uses[expr] > 1:
                made = Tensors(made.name, made.shape)
            self.memo[expr] = made
        return self.memo[expr]

    def _compute(self, expr: Expr) -> Tensors:
        match expr.op, expr.args:
            case (("add" | "sub" | "mul" | "div" | "neg"), _) if _spreads(expr):
                return self._sum(expr)
            case "pow", (a, b) if self.is_number(b) and self.number(b).value in (2, 0.5, -1, -0.5):
                return self._usual_power(expr, a, float(self.number(b).value or 0))
            case op, (a,) if op in UNARY:
                return self._unary(op, a, expr.shape)
            case op, (a, b) if op in BINARY and _same(expr, a, b, self):
                words = [self._operand(x) for x in (a, b)]
                if op != "pow" and self.is_number(a):
                    words.reverse()
                return self.assign(BINARY[op], *words, shape=expr.shape)
            case "newton_schulz", (a,):
                self.used.add("orthogonal")
                words = [self.tensors(a).name, newton_schulz_words(expr)]
                return self.keep(f"orthogonal({', '.join(words)})", expr.shape)
            case (("stop" | "let"), (a,)):
                return self.tensors(a)
        return self.each(expr)

    def _sum(self, expr: Expr) -> Tensors:
        count = self.uses[expr]
        self.uses[expr] = min(count, 1)
        found = self.sum_of(expr)
        self.uses[expr] = count
        return self._made(found, expr.shape, count < 2)

    def _made(self, found: Sum, shape: Shape, fresh: bool) -> Tensors:
        """Compute a sum as a list of its own, unless it is one list as it stands."""
        terms = found.terms
        if len(terms) == 1 and terms[0].factor.value == 1 and not terms[0].sign:
            if found.number.value == 0:
                return terms[0].a
            if not terms[0].a.fresh:
                return self.assign("add", terms[0].a.name, found.number.text, shape=shape)
        base = next(
            (t for t in terms if not t.sign and t.a.fresh and _full(t.a.shape, shape)), None
        )
        if base is not None:
            name = base.a.name
            self.scale(name, base.factor)
            rest = [t for t in terms if t is not base]
        else:
            name, rest = self._first(terms, shape)
        self.add_terms(name, rest)
        if found.number.value != 0:
            self.call("add_", name, found.number.text)
        return Tensors(name, shape, fresh)

    def _first(self, terms: list[Term], shape: Shape) -> tuple[str, list[Term]]:
        """Make a new list of the first terms; return those that are left."""
        full = [t for t in terms if not t.sign and t.factor.value == 1 and _full(t.a.shape, shape)]
        if full:
            first = full[0]
            second = next((t for t in terms if t is not first), None)
            if second is None:
                return self.assign("add", first.a.name, "0", shape=shape).name, []
            rest = [t for t in terms if t is not first and t is not second]
            return self._joined(first.a.name, second, shape), rest
        # a product has the shape of the larger of its sides
        first = next((t for t in terms if _full(t.shape, shape)), terms[0])
        rest = [t for t in terms if t is not first]
        if not first.sign:
            inverse = first.factor.inverse
            op, by = ("mul", first.factor) if inverse is None else ("div", inverse)
            return self.assign(op, first.a.name, by.text, shape=shape).name, rest
        assert first.b is not None
        op = "mul" if first.sign == "*" else "div"
        name = self.assign(op, first.a.name, first.b.name, shape=shape).name
        self.scale(name, first.factor)
        return name, rest

    def _joined(self, first: str, second: Term, shape: Shape) -> str:
        factor = second.factor
        if not second.sign:
            if factor.value == -1:
                return self.assign("sub", first, second.a.name, shape=shape).name
            words = [] if factor.value == 1 else [f"alpha={factor.text}"]
            return self.assign("add", first, second.a.name, *words, shape=shape).name
        assert second.b is not None
        op = "addcmul" if second.sign == "*" else "addcdiv"
        words = [] if factor.value == 1 else [f"value={factor.text}"]
        return self.assign(op, first, second.a.name, second.b.name, *words, shape=shape).name

    def scale(self, name: str, factor: Number) -> None:
        """name *= factor."""
        if factor.value == -1:
            self.call("neg_", name)
        elif factor.inverse is not None:
            self.call("div_", name, factor.inverse.text)
        elif factor.value != 1:
            self.call("mul_", name, factor.text)

    def add_terms(self, name: str, terms: list[Term]) -> None:
        """name += the terms."""
        for term in terms:
            factor = term.factor
            if not term.sign:
                if factor.value == -1:
                    self.call("sub_", name, term.a.name)
                else:
                    words = [] if factor.value == 1 else [f"alpha={factor.text}"]
                    self.call("add_", name, term.a.name, *words)
                continue
            assert term.b is not None
            op = "addcmul_" if term.sign == "*" else "addcdiv_"
            words = [] if factor.value == 1 else [f"value={factor.text}"]
            self.call(op, name, term.a.name, term.b.name, *words)

    def _unary(self, op: str, a: Expr, shape: Shape) -> Tensors:
        x = self.tensors(a)
        if x.fresh and _full(x.shape, shape):
            self.call(f"{op}_", x.name)
            return Tensors(x.name, shape, True)
        return self.assign(op, x.name, shape=shape)

    def _usual_power(self, expr: Expr, a: Expr, exponent: float) -> Tensors:
        if exponent == 0.5:
            return self._unary("sqrt", a, expr.shape)
        if exponent == -0.5:
            return self._unary("rsqrt", a, expr.shape)
        if exponent == -1:
            return self._reciprocal(a)
        x = self.tensors(a)
        return self.assign("mul", x.name, x.name, shape=expr.shape)

    def _operand(self, expr: Expr) -> str:
        return self.number(expr).text if self.is_number(expr) else self.tensors(expr).name

    # ---- tensor by tensor ------------------------------------------------------------------

    def each(self, expr: Expr) -> Tensors:
        """Compute an expression tensor by tensor."""
        lists: dict[str, str] = {}
        site = Site(self.like, self.used)
        element = real(site, self.element(expr, site, lists, inline=True))
        if lists:
            fresh = expr.op not in LAYOUT
            return self.keep(over_lists(element.text, lists), expr.shape, fresh)
        # nothing of it differs between the parameters, but each has its copies
        axes = self.tuple_of("w_i", ["-1"] * len(expr.shape))
        text = f"{element.within(CALL)}.expand({axes})"
        return self.keep((text, "for w_i in w"), expr.shape, fresh=False)

    # ---- statements ------------------------------------------------------------------------

    def set(self, target: str, expr: Expr, shape: Shape, is_local: bool) -> None:
        """Write `target = expr`: in place for a state and `self`, a new list for a local name."""
        self.begin(expr)
        name = self.text(target)
        if target in self.numbers:
            self.out.line(f"{name} = {self.number(expr).text}")
            return
        whole = Tensors(name, shape)
        expr = without_spreading(expr)
        if self.is_number(expr):
            self.fill(name, self.number(expr), shape, is_local)
            return
        found = self.sum_of(expr)
        own = next((t for t in found.terms if t.a == whole and not t.sign), None)
        rest = [t for t in found.terms if t is not own]
        if own is not None and _full(whole.shape, expr.shape):
            if any(name in t.names for t in rest):
                rest = [self._apart(t, name, expr.shape) for t in rest]
            self.scale(name, own.factor)
            self.add_terms(name, rest)
            if found.number.value != 0:
                self.call("add_", name, found.number.text)
            return
        made = self._made(found, expr.shape, fresh=True)
        if not is_local:
            self.copy(name, made.name, _full(made.shape, shape))
        elif self._owned(made, found):
            self.rename(made.name, name)
        else:
            item = self.item(made.name)
            self.assign_list(name, (f"{item}.clone()", f"for {item} in {made.name}"))

    def _owned(self, made: Tensors, found: Sum) -> bool:
        """Say whether a list that was made is nobody else's."""
        return made.fresh or not any(t.a.name == made.name for t in found.terms)

    def _apart(self, term: Term, name: str, shape: Shape) -> Term:
        """Compute a term before the list it reads changes."""
        if name not in term.names:
            return term
        made = self._made(Sum([term]), shape, fresh=True)
        if made.name == name:
            made = self.assign("add", name, "0", shape=shape)
        return Term(ONE, shape, made)

    def copy(self, name: str, source: str, full: bool) -> None:
        """Write the entries of one list into another."""
        if source == name:
            return
        if full:
            self.call("copy_", name, source)
            return
        one, other = self.item(name), self.item(source)
        self.out.line(f"for {one}, {other} in zip({name}, {source}, strict=True):")
        with self.out.indent():
            self.out.line(f"{one}.copy_({other})")

    def fill(self, name: str, value: Number, shape: Shape, is_local: bool) -> None:
        """Set every entry to a number."""
        if is_local:
            site = Site(self.like, self.used)
            axes = self.tuple_of("w_i", [site.size(axis) for axis in shape])
            self.assign_list(name, (f"w_i.new_full({axes}, {value.text})", "for w_i in w"))
            return
        item = self.item(name)
        self.out.line(f"for {item} in {name}:")
        with self.out.indent():
            self.out.line(f"{item}.fill_({value.text})")

    def call(self, op: str, *args: str) -> None:
        """Write an operation that changes its first list."""
        for line in split_call(f"torch._foreach_{op}(", args, ")", self.out.room):
            self.out.line(line)

    def assign(self, op: str, *args: str, shape: Shape) -> Tensors:
        """Write an operation that makes a new list."""
        name = self.temporary()
        for line in split_call(f"{name} = torch._foreach_{op}(", args, ")", self.out.room):
            self.out.line(line)
        return Tensors(name, shape, True)

    def keep(self, text: str | tuple[str, str], shape: Shape, fresh: bool = True) -> Tensors:
        """Give a list a name."""
        name = self.temporary()
        self.assign_list(name, text)
        return Tensors(name, shape, fresh)

    def temporary(self) -> str:
        """Name an intermediate list; each statement begins anew."""
        self.temporaries += 1
        key = f" {self.temporaries}"
        if key not in self.texts:
            self.texts[key] = self.names.fresh("value")
        return self.texts[key]

    def rename(self, old: str, new: str) -> None:
        """Let the list that was made last have another name, where nothing in between reads it."""
        lines = self.out.lines
        first = next(
            i for i in range(len(lines) - 1, -1, -1) if lines[i].lstrip().startswith(f"{old} = ")
        )
        if any(_mentions(line, new) for line in lines[first + 1 :]):
            self.out.line(f"{new} = {old}")
            return
        changed = [
            re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, line) for line in lines[first:]
        ]
        lines[first:] = _laid_out(changed)


def _laid_out(lines: list[str]) -> list[str]:
    """Join what was broken over lines and fits on one, now that a name is shorter."""
    found: list[str] = []
    i = 0
    while i < len(lines):
        end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() in (")", "]")), None)
        if lines[i].endswith(("(", "[")) and end is not None:
            inside = [line.strip() for line in lines[i + 1 : end]]
            whole = lines[i] + " ".join(inside).rstrip(",") + lines[end].strip()
            if len(whole) <= WIDTH:
                found.append(whole)
                i = end + 1
                continue
        found.append(lines[i])
        i += 1
    return found


def _mentions(line: str, name: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", line) is not None


def without_spreading(expr: Expr) -> Expr:
    """What is spread over a state's shape, which a copy does by itself."""
    if expr.op == "where" and expr.args[0].op == "const" and expr.args[0].attr("value") == 1.0:
        return expr.args[1]
    return expr


def _full(have: Shape, want: Shape) -> bool:
    return sizes(have) == sizes(want)


def _spreads(expr: Expr) -> bool:
    """Say whether one of the arguments has the shape of the result, so that it can be changed."""
    return any(_full(a.shape, expr.shape) for a in expr.args)


def _same(expr: Expr, a: Expr, b: Expr, writer: ListWriter) -> bool:
    return writer.is_number(a) or writer.is_number(b) or _spreads(expr)
