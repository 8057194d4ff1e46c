"""A rule's equations as kernels over many tensors: what works entry by entry goes in one launch.

In: the actions of a motion. Out: the statements of a method, in which runs of such equations are
launches, and the text of their kernels. Plain numbers are computed by Python and given to a kernel;
what else a rule does (an orthogonalisation, norms, products) stays as statements over lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from nlc.codegen.names import Names
from nlc.codegen.rules.body import BodyWriter
from nlc.codegen.rules.lists import without_spreading
from nlc.codegen.rules.numbers import ATOM, PRODUCT, SUM, UNARY, Number
from nlc.codegen.triton.operations import BINARY as CALLS
from nlc.codegen.triton.operations import UNARY as FUNCTIONS
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.rule import Action, Every, Loop, Set, When, expressions, flat
from nlc.ir.shape import Shape, sizes

# what a kernel's text uses itself
RESERVED = frozenset({
    "tl", "triton", "table", "chunks", "count", "tensor", "at", "live", "place", "entries",
    "EVEN", "BLOCK",
})  # fmt: skip
INFIX = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT)}
COMPARED = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
# powers that are other operations
POWERS = {2.0: "{0} * {0}", 0.5: "tl.sqrt({0})", -0.5: "tl.rsqrt({0})", -1.0: "1.0 / {0}"}
# runs over whole lists, and takes what works entry by entry
APART = frozenset(["newton_schulz"])
# a text that is longer gets a line of its own
LONG = 44
ROOM = 96


@dataclass
class StepKernels:
    """The kernels of one rule; the same text is one kernel."""

    rule: str
    found: dict[str, str] = field(default_factory=dict)  # the name of each text

    def add(self, body: str) -> str:
        """Give the name of a kernel: its arguments, and below them its text."""
        if body not in self.found:
            number = f"_{len(self.found) + 1}" if self.found else ""
            self.found[body] = f"{self.rule}{number}_kernel"
        return self.found[body]

    def texts(self) -> Iterator[list[str]]:
        """The lines of each kernel."""
        for body, name in self.found.items():
            out = Writer()
            head, *rest = body.split("\n")
            out.line("@triton.jit")
            for line in split_call(f"def {name}(", head.split("; "), "):", out.room):
                out.line(line)
            yield [*out.lines, *rest]


@dataclass
class StepWriter(BodyWriter):
    """Writes the actions of a motion, runs of what works entry by entry as launches.

    `whole` says whether nothing but launches and plain numbers was written.
    """

    kernels: StepKernels = field(default_factory=lambda: StepKernels(""))
    whole: bool = True
    graph: Graph = field(default_factory=Graph)
    # the equation that each of those here is the end of; equations are kept, so that these last
    ends: dict[int, Action] = field(default_factory=dict)
    pieces: list[Action] = field(default_factory=list)

    def walk(self, actions: tuple[Action, ...]) -> None:
        """Write actions in order."""
        run: list[Set] = []
        for action in [piece for whole in actions for piece in self._pieces(whole)]:
            if isinstance(action, Set) and self._fits(action):
                run.append(action)
                continue
            number = isinstance(action, Set) and action.target in self.lists.numbers
            if not number or self._reads(run, action):
                self._launch(run)
                run = []
            match action:
                case When(condition=condition):
                    self.whole = self.whole and self.lists.is_number(condition)
                case Every() | Loop():
                    pass
                case _:
                    self.whole = self.whole and number
            super().walk((action,))
            if self.out.lines[-1].endswith(":"):
                # nothing that is read later is made there
                self.out.line("    pass")
        self._launch(run)

    def _when(self, action: When) -> None:
        if self.lists.is_number(action.condition):
            super()._when(action)
            return
        # each copy decides for itself: all of it is written over lists
        plain = BodyWriter(self.motion, self.lists, self.where, self.said, self.begun)
        plain._when(action)

    # ---- what goes into a kernel ---------------------------------------------------------------

    def _pieces(self, action: Action) -> list[Action]:
        """Take what runs over whole lists out of an equation, and what it is given."""
        if not isinstance(action, Set) or action.target in self.motion.parts:
            return [action]
        found: list[Action] = []

        def named(value: Expr, wanted: str) -> Expr:
            name = f"step.{wanted}.{len(self.lists.texts)}"
            self.lists.texts[name] = self.lists.names.fresh(wanted)
            found.append(replace(action, target=name, value=value))
            self.lists.shapes[name] = value.shape
            return self.graph.make("stream", name=name, shape=value.shape)

        def apart(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if node.op not in APART or not self._full(node.shape):
                return None
            if args[0].op != "stream" and self._by_entry(args[0]):
                args = (named(args[0], "x"), *args[1:])
            made = self.graph.make(node.op, *args, span=node.span, **dict(node.attrs))
            return made if node is action.value else named(made, "o")

        (value,) = rewrite(self.graph, [action.value], apart)
        last = replace(action, value=value)
        self.pieces += [*found, last]
        self.ends[id(last)] = action
        return [*found, last]

    def _fits(self, action: Set) -> bool:
        """Say whether an equation is one that a kernel has."""
        if action.target in self.lists.numbers:
            return False
        if action.target in self.motion.parts or not self._full(self._shape(action)):
            return False
        return self._by_entry(without_spreading(action.value))

    def _shape(self, action: Set) -> Shape:
        if action.target == "self":
            return self.motion.shape
        if self._is_local(action.target):
            return without_spreading(action.value).shape
        return self.motion.cell(action.target).shape

    def _full(self, shape: Shape) -> bool:
        return sizes(shape) == sizes(self.motion.shape)

    def _by_entry(self, expr: Expr) -> bool:
        """Say whether an expression works entry by entry, with operations that kernels have."""
        if self.lists.is_number(expr):
            return True
        if not self._full(expr.shape):
            return False
        match expr.op, expr.args:
            case "stream", _:
                return expr.attr("name") not in self.motion.parts
            case "pow", (a, b):
                known = self.lists.is_number(b) and self.lists.number(b).value in POWERS
                return known and self._by_entry(a)
            case "where", (c, a, b):
                return all(self._by_entry(x) for x in (c, a, b))
            case op, args if op in FUNCTIONS or op in CALLS or op in ("stop", "let"):
                return all(self._by_entry(x) for x in args)
        return False

    @staticmethod
    def _reads(run: Sequence[Set], action: Action) -> bool:
        """Say whether a run reads what an equation sets."""
        nodes = postorder([before.value for before in run])
        read = {n.attr("name") for n in nodes if n.op == "stream"}
        return isinstance(action, Set) and action.target in read

    # ---- launches ------------------------------------------------------------------------------

    def _launch(self, run: Sequence[Set]) -> None:
        """Write a launch, and its kernel."""
        if not run:
            return
        later = {n.attr("name") for n in postorder(self._others(run)) if n.op == "stream"}
        kernel = KernelText(self, self.kernels.rule)
        read, made = kernel.equations(run)
        later |= {name for name in made if name.startswith("step.")} | self._chosen()
        kept = [name for name in made if not self._is_local(name) or name in {*later, *read}]
        if not kept:
            return
        names = [*read, *(name for name in kept if name not in read)]
        body = kernel.text(names, read, kept)
        numbers = list(kernel.numbers)
        name = self.kernels.add(body)
        lists = self.lists
        lists.used |= {"launch", "place", "entries"}
        for target in kept:
            if self._is_local(target) and target not in read:
                lists.used.add("rooms")
                self.out.line(f"{lists.text(target)} = rooms(w)")
        self.out.comment(f"in one launch: {', '.join(lists.text(target) for target in kept)}")
        words = [name, f"[{', '.join(lists.text(n) for n in names)}]"]
        if len(numbers) > 3:
            given = lists.names.fresh("scalars")
            whole = f"{given} = [{', '.join(numbers)}]"
            long = [f"{given} = [", *(f"    {number}," for number in numbers), "]"]
            for line in [whole] if len(whole) <= self.out.room else long:
                self.out.line(line)
            words.append(given)
        else:
            words.append(f"[{', '.join(numbers)}]")
        self.out.call("launch(", words)
        self.said = ""

    def _chosen(self) -> set[str]:
        """What a condition of each copy chooses: its value before is read there."""
        whens = [action for action in flat(self.motion.actions) if isinstance(action, When)]
        inside = [a for w in whens if not self.lists.is_number(w.condition) for a in flat(w.body)]
        return {action.target for action in inside if isinstance(action, Set)}

    def _others(self, run: Sequence[Set]) -> list[Expr]:
        """All expressions of the motion that are not of a run."""
        inside = {id(self.ends[id(action)]) for action in run if id(action) in self.ends}
        actions = [action for action in flat(self.motion.actions) if id(action) not in inside]
        return [*(e for action in actions for e in expressions((action,))), *self._evaluated()]

    def _evaluated(self) -> list[Expr]:
        return [] if self.motion.evaluated is None else [self.motion.evaluated]


@dataclass
class KernelText:
    """The text of one kernel."""

    writer: StepWriter
    rule: str
    out: Writer = field(default_factory=lambda: Writer(depth=1))
    # what numbers are called here, by how Python writes them
    numbers: dict[str, str] = field(default_factory=dict)
    names: Names = field(init=False)
    known: dict[Expr, Number] = field(default_factory=dict)
    uses: dict[Expr, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {*RESERVED, *self.writer.lists.texts.values()}
        self.names = Names({*own, *(f"{name}_at" for name in own)})

    def equations(self, run: Sequence[Set]) -> tuple[list[str], list[str]]:
        """Write the equations; give what they read before it is made, and what they make."""
        read: dict[str, None] = {}
        made: dict[str, None] = {}
        lists, said = self.writer.lists, ""
        for action in run:
            value = without_spreading(action.value)
            for node in postorder([value]):
                if node.op == "stream" and not lists.is_number(node):
                    name = node.attr("name")
                    if name not in made:
                        read.setdefault(name)
            words = " ".join(action.text.split())
            place = self.writer.where(action.span)
            comment = f"{words}   ({place})" if place else words
            if comment != said:
                self.out.comment(comment)
                said = comment
            self._set(action.target, value)
            made.setdefault(action.target)
            if self.writer._is_local(action.target):
                lists.shapes[action.target] = action.value.shape
        order = {"self": 0, "grad": 1}
        return sorted(read, key=lambda name: order.get(name, 2)), list(made)

    def text(self, names: Sequence[str], read: Sequence[str], kept: Sequence[str]) -> str:
        """The whole kernel: its arguments in the first line."""
        lists = self.writer.lists
        texts = {name: lists.text(name) for name in names}
        words = ["table", "chunks", "count", *self.numbers.values()]
        words += [f"{text}_type: tl.constexpr" for text in texts.values()]
        words += ["EVEN: tl.constexpr", "BLOCK: tl.constexpr"]
        out = Writer(depth=1)
        about = [f"{', '.join(texts[name] for name in kept)} of BLOCK entries of a tensor."]
        told = [f"{word} = {text}" for text, word in self.numbers.items() if word != text]
        out.docstring([*about, *_filled(told, out.room)])
        out.line("tensor, at, live = place(table, chunks, EVEN, BLOCK)")
        for row, name in enumerate(names, 1):
            text = texts[name]
            given = ["table", "count", str(row), "tensor", "at", f"{text}_type", "EVEN"]
            out.call(f"{text}_at = entries(", given)
        for name in read:
            out.line(f"{texts[name]} = tl.load({texts[name]}_at, mask=live).to(tl.float32)")
        out.lines += self.out.lines
        for name in kept:
            out.line(f"tl.store({texts[name]}_at, {texts[name]}, mask=live)")
        return "\n".join(["; ".join(words), *out.lines])

    # ---- expressions ---------------------------------------------------------------------------

    def _set(self, target: str, value: Expr) -> None:
        self.known, self.uses = {}, {}
        for node in postorder([value]):
            for arg in node.args:
                self.uses[arg] = self.uses.get(arg, 0) + 1
        text = self.writer.lists.text(target)
        if self.writer.lists.is_number(value):
            self.out.line(f"{text} = tl.full([BLOCK], {self._number(value).text}, tl.float32)")
            return
        self.out.line(f"{text} = {self._value(value, len(text)).text}")

    def _number(self, expr: Expr) -> Number:
        number = self.writer.lists.number(expr)
        if expr.op == "const" or number.value is not None:
            finite = number.text.lstrip("-").replace(".", "").replace("e", "").replace("-", "")
            if finite.isdigit():
                return Number(number.text, UNARY if number.text.startswith("-") else ATOM)
        if number.text not in self.numbers:
            made = sum(text != word for text, word in self.numbers.items())
            plain = number.text.isidentifier()
            word = number.text if plain else self.names.fresh(f"c{made + 1}")
            self.numbers[number.text] = word
        return Number(self.numbers[number.text])

    def _value(self, expr: Expr, taken: int = 0) -> Number:
        if expr in self.known:
            return self.known[expr]
        made = self._made(expr)
        plain = made.text.isidentifier() or self.writer.lists.is_number(expr)
        if not plain and (self.uses.get(expr, 0) > 1 or len(made.text) + taken > ROOM - 12):
            made = self._line(made)
        self.known[expr] = made
        return made

    def _line(self, made: Number) -> Number:
        name = self.names.fresh("value")
        self.out.line(f"{name} = {made.text}")
        return Number(name)

    def _made(self, expr: Expr) -> Number:
        lists = self.writer.lists
        if lists.is_number(expr):
            return self._number(expr)
        match expr.op, expr.args:
            case "stream", _:
                return Number(lists.text(expr.attr("name")))
            case (("stop" | "let"), (a,)):
                return self._value(a)
            case "neg", (a,):
                x = self._short(a)
                return Number(f"-{x.within(UNARY)}", UNARY)
            case "pow", (a, b):
                power = POWERS[float(lists.number(b).value or 0)]
                x = self._value(a)
                if power.count("{0}") > 1 and not x.text.isidentifier():
                    x = self._line(x)
                whole = power.startswith("tl.")
                text = power.format(x.text if whole else x.within(UNARY))
                return Number(text, ATOM if whole else PRODUCT)
            case op, (a, b) if op in INFIX:
                sign, strength = INFIX[op]
                x, y = self._short(a), self._short(b)
                return Number(f"{x.within(strength)} {sign} {y.within(strength + 1)}", strength)
            case "where", (c, a, b):
                return Number(
                    f"tl.where({self._truth(c)}, {self._short(a).text}, {self._short(b).text})"
                )
            case op, (a,):
                return self._called(FUNCTIONS[op], [a])
            case op, args:
                return self._called(CALLS[op], args)

    def _short(self, expr: Expr) -> Number:
        made = self._value(expr)
        return made if len(made.text) <= LONG else self._line(made)

    def _truth(self, expr: Expr) -> str:
        if expr.op in COMPARED and not self.writer.lists.is_number(expr):
            a, b = (self._short(x).within(SUM) for x in expr.args)
            return f"{a} {COMPARED[expr.op]} {b}"
        return f"{self._short(expr).within(SUM)} != 0"

    def _called(self, form: str, args: Sequence[Expr]) -> Number:
        """Fill the arguments into a form; what a form has twice, gets a name."""
        texts = []
        for place, arg in enumerate(args):
            x = self._short(arg)
            mark = f"{{{place}}}"
            if form.count(mark) > 1 and not x.text.isidentifier():
                x = self._line(x)
            lone = f"({mark}" in form or f" {mark})" in form
            texts.append(x.text if lone and form.startswith("tl.") else x.within(ATOM))
        text = form.format(*texts)
        alone = form.startswith("tl.") and form.endswith(")") and form.count("tl.") == 1
        return Number(text, ATOM if alone else SUM)


def _filled(entries: Sequence[str], room: int) -> list[str]:
    """Put entries on lines, as many on each as it holds."""
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) + 2 <= room:
            lines[-1] += f"; {entry}"
        else:
            lines.append(entry)
    return lines
