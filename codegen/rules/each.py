"""Texts that go tensor by tensor: comprehensions over lists, and functions of one tensor of each.

In: an expression over lists of tensors and plain numbers. Out: the text of what is made for one
parameter, with the lists it goes over. `ListWriter` stands on this; what can run on whole lists at
once, it takes out before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nlc.codegen.names import Names
from nlc.codegen.rules.elements import ELEMENTS, Element, Site, of_number, real
from nlc.codegen.rules.maps import reading_name
from nlc.codegen.rules.numbers import ATOM, COMPARE, Number, is_number, literal, number_of
from nlc.codegen.rules.sums import Tensors
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Shape
from nlc.ir.system import Map

# operations of one argument that torch has for lists
UNARY = frozenset(["exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "sigmoid", "erf"])
# and those of two arguments that are no sums or products
BINARY = {"maximum": "maximum", "minimum": "minimum", "pow": "pow"}
# what runs on whole lists
WHOLE = UNARY | {"add", "sub", "mul", "div", "neg", "newton_schulz", *BINARY}
# a name for a value of a function where its text is longer
LONG = 40


@dataclass
class EachWriter:
    """What is known in one method: `numbers` and `parts` of names, `texts` how they are written.

    `rank` is how many own axes a parameter has, `owner` the rule; `readings` collects the maps that
    are read by functions of their own.
    """

    out: Writer
    names: Names
    numbers: set[str]
    used: set[str]
    rank: int
    owner: str
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    readings: dict[str, Map] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    # the shapes of names that have been set
    shapes: dict[str, Shape] = field(default_factory=dict)
    like: str = "w[0]"
    memo: dict[Expr, Tensors] = field(default_factory=dict)
    uses: Counter[Expr] = field(default_factory=Counter)
    temporaries: int = 0

    def begin(self, *roots: Expr) -> None:
        """Begin a statement: its parts are computed once, and its temporaries are its own."""
        self.memo, self.uses, self.temporaries = {}, Counter(), 0
        for node in postorder(roots):
            self.uses.update(node.args)
        self.uses.update(roots)

    def tensors(self, expr: Expr) -> Tensors:
        """Compute an expression as a list."""
        raise NotImplementedError

    # ---- names and numbers -----------------------------------------------------------------

    def is_number(self, expr: Expr) -> bool:
        """Say whether an expression is a plain number."""
        return is_number(expr, self.numbers)

    def number(self, expr: Expr) -> Number:
        """Write an expression over plain numbers."""
        return number_of(expr, self.text)

    def text(self, name: str) -> str:
        """How a name of the rule is known in the method."""
        if name not in self.texts:
            if name in self.parts:
                whole, part = self.parts[name]
                self.used.add("part")
                return f'part({self.text(whole)}, "{part}")'
            self.texts[name] = self.names.fresh(name)
        return self.texts[name]

    def item(self, name: str) -> str:
        """Name one tensor of a list."""
        plain = re.sub(r"\W+", "_", name.removeprefix("part(")).strip("_")
        return f"{plain}_i_" if f"{plain}_i" in self.names.used else f"{plain}_i"

    def tuple_of(self, name: str, sizes: list[str]) -> str:
        """The axes in front of a parameter's own and then others, as a tuple."""
        front = f"{name}.shape[:-{self.rank}]" if self.rank else f"{name}.shape"
        return f"(*{front}, {', '.join(sizes)})" if sizes else front

    def assign_list(self, name: str, text: str | tuple[str, str]) -> None:
        """Write `name = text`, or a comprehension of what it makes and what it goes over."""
        whole = text if isinstance(text, str) else f"[{text[0]} {text[1]}]"
        if isinstance(text, str) or len(f"{name} = {whole}") <= self.out.room:
            self.out.line(f"{name} = {whole}")
            return
        inside = [f"    {text[0]} {text[1]}"]
        if len(inside[0]) > self.out.room:
            inside = [f"    {text[0]}", f"    {text[1]}"]
        for line in (f"{name} = [", *inside, "]"):
            self.out.line(line)

    # ---- tensor by tensor ------------------------------------------------------------------

    def truths(self, expr: Expr) -> tuple[str, str]:
        """Write a list of a condition's truth for each parameter."""
        lists: dict[str, str] = {}
        site = Site(self.like, self.used)
        element = self.element(expr, site, lists, inline=True)
        text = element.text if element.kind == "bool" else f"{element.within(COMPARE + 1)} != 0"
        return over_lists(text, lists)

    def element(
        self, expr: Expr, site: Site, lists: dict[str, str], inline: bool = False
    ) -> Element:
        """Write an expression for one tensor of each list; `lists` collects what it goes over."""
        if self.is_number(expr):
            return of_number(self.number(expr))
        if expr.op == "stream":
            return self.bound(self.text(expr.attr("name")), lists)
        if not inline and not self._stays(expr):
            return self.bound(self.tensors(expr).name, lists)
        if expr.op == "window":
            return over_tokens(self, expr, site, lists)
        if expr.op == "apply":
            x = self.element(expr.args[0], site, lists)
            return self.read(expr, x, self._whole(expr, site, lists))
        args = [self.element(a, site, lists) for a in expr.args]
        return ELEMENTS[expr.op](site, expr, args)

    def _stays(self, expr: Expr) -> bool:
        """Say whether an expression is written inside of what uses it."""
        return expr not in self.memo and self.uses[expr] < 2 and expr.op not in WHOLE

    def bound(self, name: str, lists: dict[str, str]) -> Element:
        """One tensor of a list."""
        return Element(lists.setdefault(name, self.item(name)), ATOM)

    def _whole(self, expr: Expr, site: Site, lists: dict[str, str]) -> str:
        """The parts of an applied map: what has them all, or a dict of them."""
        form: Map = expr.attr("map")
        parts = expr.args[1:]
        if len(parts) == 1:
            return self.element(parts[0], site, lists).text
        known = [self.parts.get(p.attr("name"), ("", "")) for p in parts if p.op == "stream"]
        wholes = {whole for whole, _ in known}
        if len(known) == len(parts) and len(wholes) == 1 and "" not in wholes:
            return self.bound(self.text(wholes.pop()), lists).text
        texts = [self.element(p, site, lists).text for p in parts]
        pairs = zip((p.name for p in form.parts), texts, strict=True)
        return "{" + ", ".join(f'"{name}": {text}' for name, text in pairs) + "}"

    def read(self, expr: Expr, x: Element, parts: str) -> Element:
        """Write a map applied to x."""
        form: Map = expr.attr("map")
        more = len(expr.args[0].shape) - len(form.inputs)
        if len(form.parts) == 1 and len(form.inputs) == len(form.outputs) == 1:
            self.used.add("times")
            return Element(f"times({parts}, {x.text}, {more})")
        name = reading_name(self.owner, expr.attr("map").text)
        for known, other in self.readings.items():
            if other == form:
                name = known
                break
        else:
            name = reading_name(self.owner, f"{form.kind}{len(self.readings) or ''}")
            self.readings[name] = form
        return Element(f"{name}({x.text}, {parts}, {more})")

    # ---- functions -------------------------------------------------------------------------

    def function(self, name: str, memory: str, parts: Sequence[str], expr: Expr) -> list[str]:
        """Write a function of a memory and of one tensor of each list; return these lists."""
        lists: dict[str, str] = {}
        own = Names({self.text(name) for name in self.numbers if name in self.texts})
        first = own.fresh("value" if memory == "self" else memory.rpartition(".")[2])
        many = len(parts) > 1
        site = Site(f'{first}["{parts[0]}"]' if many else first, self.used)
        words = {(memory, p): f'{first}["{p}"]' if many else first for p in parts}
        self.begin(expr)
        body: list[str] = []
        known: dict[Expr, Element] = {}
        for node in postorder([expr]):
            if self.is_number(node):
                known[node] = of_number(self.number(node))
            elif node.op == "variable":
                known[node] = Element(words[node.attr("memory"), node.attr("part")], ATOM)
            elif node.op == "stream":
                known[node] = self.bound(self.text(node.attr("name")), lists)
            else:
                made = self._made_in(node, site, known, first, lists)
                if self.uses[node] > 1 or len(made.text) > LONG:
                    step = own.fresh("x")
                    body.append(f"{step} = {real(site, made).text}")
                    made = Element(step, ATOM)
                known[node] = made
        kind = "dict[str, Tensor]" if many else "Tensor"
        arguments = [f"{first}: {kind}", *(f"{n}: Tensor" for n in lists.values())]
        for line in split_call(f"def {name}(", arguments, ") -> Tensor:", self.out.room):
            self.out.line(line)
        with self.out.indent():
            for line in body:
                self.out.line(line)
            self.out.line(f"return {real(site, known[expr]).text}")
        self.out.blank()
        return list(lists)

    def _made_in(
        self, node: Expr, site: Site, known: dict[Expr, Element], memory: str, lists: dict[str, str]
    ) -> Element:
        """Write one value of a function."""
        if node.op != "apply":
            return ELEMENTS[node.op](site, node, [known[a] for a in node.args])
        x, *parts = node.args
        if all(p.op == "variable" for p in parts):
            return self.read(node, known[x], memory)
        return self.read(node, known[x], self._whole(node, site, lists))


def over_tokens(writer: EachWriter, expr: Expr, site: Site, lists: dict[str, str]) -> Element:
    """Write a sum or mean over tokens; kept apart as it is rare."""
    from nlc.codegen.rules.tokens import TokenWriter

    return TokenWriter(writer, site, lists, str(expr.attr("how"))).over(expr.args[0])


def over_lists(text: str, lists: dict[str, str]) -> tuple[str, str]:
    """Write a list comprehension; `lists` are the names of lists with those of their tensors."""
    names, items = list(lists), list(lists.values())
    if len(names) == 1:
        return text, f"for {items[0]} in {names[0]}"
    return text, f"for {', '.join(items)} in zip({', '.join(names)}, strict=True)"


def alone(expr: Expr, name: str, used: set[str]) -> str:
    """Write an expression for one tensor, by whose name the leaves are known."""

    def text(node: Expr) -> Element:
        match node.op:
            case "const":
                return of_number(literal(node.attr("value")))
            case "stream":
                return Element(name, ATOM)
            case "param":
                place = {"in": -1, "out": -2}[node.attr("name")]
                return Element(f"{name}.shape[{place}]", ATOM, "number")
        site = Site(name, used)
        return ELEMENTS[node.op](site, node, [text(arg) for arg in node.args])

    return real(Site(name, used), text(expr)).text
