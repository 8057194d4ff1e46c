"""The kernels of a launch where a window ends, and what starts them: operations, fakes, backward.

In: a `LaunchPlan`. Out: the text of

    NAME_rows, NAME_rows_back, ...   one part of a map: some rows of it
    NAME_kernel, NAME_back_kernel    all parts, a program for some rows of each copy
    NAME_op, NAME_op_back            tensors [B * H, *own], or [H, *own] of what is no row's own
    NAME                             what a memory's `update` calls
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlc.codegen.triton.operations import block
from nlc.codegen.triton.table import ARCHITECTURES
from nlc.codegen.triton.window_text import Body, ItemText, Leaf, Slope
from nlc.codegen.writer import Writer, split_call

from nlc.ir.kernel import Emitted
from nlc.ir.shape import Shape, sizes

# entries of a value that a program has
ENTRIES = 1 << 10
# ... in the interpreter, so that small cases have several programs
INTERPRETER = 8


@dataclass(frozen=True)
class LaunchItem:
    """A part of a launch: its text, and what its words are called in the launch."""

    text: ItemText
    leaves: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class LaunchPlan:
    """One launch of a memory's update: `step` is its number, 0 where it is the only one."""

    memory: str
    step: int
    lead: Shape
    leaves: tuple[Leaf, ...]
    outputs: tuple[tuple[str, Shape], ...]
    items: tuple[LaunchItem, ...]

    @property
    def name(self) -> str:
        """What begins all names."""
        return f"{self.memory}_{self.role}"

    @property
    def role(self) -> str:
        """What it does for the memory."""
        return f"update_{self.step}" if self.step else "update"


def write_launch(plan: LaunchPlan, about: Sequence[str], digest: str, made: list[Emitted]) -> str:
    """Write the kernels of a launch and what starts them."""
    return _Launch(plan, list(about), digest).write(made)


class _Launch:
    """Writes what belongs to one launch."""

    def __init__(self, plan: LaunchPlan, about: list[str], digest: str):
        self.plan, self.about, self.digest = plan, about, digest
        self.out = Writer()
        self.name, self.op = plan.name, f"{plan.name}_op"
        self.table = f"{plan.name.upper()}_BLOCKS"
        self.leaves = [leaf.word for leaf in plan.leaves]
        self.results = [word for word, _ in plan.outputs]
        self.count = 1
        for size in sizes(plan.lead):
            self.count *= size
        self.functions: dict[tuple[str, ...], str] = {}
        self.slopes = self._slopes()
        self.has_back = any(item.text.back is not None for item in plan.items)

    def write(self, made: list[Emitted]) -> str:
        """Write everything."""
        self._blocks()
        self._kernel("", False)
        if self.has_back:
            self._kernel("_back", True)
        self._forward()
        if self.has_back:
            self._back()
        self._function()
        narrow = frozenset(leaf.word for leaf in self.plan.leaves if not leaf.wide)
        for tail in ("", "_back") if self.has_back else ("",):
            name, role = f"{self.name}{tail}_kernel", f"{self.plan.role}{tail}"
            made.append(Emitted(name, self.plan.memory, role, self.table, narrow, False, 1, 1))
        return self.out.text()

    # ---- sizes ---------------------------------------------------------------------------------

    def _blocks(self) -> None:
        """How many entries of a value a program has."""
        widest = max(item.text.width for item in self.plan.items)
        whole = max(
            (self._entries(item) for item in self.plan.items if item.text.axis is None), default=1
        )
        entries = max(ENTRIES, widest)
        held = max(entries, whole)
        warps = 4 if held <= 1 << 11 else 8 if held <= 1 << 12 else 16
        out = self.out
        out.line(f"{self.table} = {{")
        for machine in ARCHITECTURES:
            out.line(f'    "{machine}": Blocks(1, {entries}, {warps}, {warps}, 1),')
        out.line(f'    "interpreter": Blocks(1, {max(INTERPRETER, widest)}, 4, 4, 1),')
        out.line("}")
        out.blank(2)

    @staticmethod
    def _entries(item: LaunchItem) -> int:
        own = max((shape for _, shape in item.text.outputs), key=lambda s: len(s))
        found = 1
        for size in sizes(own):
            found *= block(size)
        return found

    @staticmethod
    def _parts(item: LaunchItem) -> str:
        """How many programs of a copy an item has."""
        text = item.text
        return "1" if text.axis is None else f"-(-{text.axis.size * text.width} // E)"

    # ---- kernels -------------------------------------------------------------------------------

    def _kernel(self, tail: str, back: bool) -> None:
        """The functions of the items, and the kernel that calls them."""
        plan, out = self.plan, self.out
        calls = []
        for item in plan.items:
            body = item.text.back if back else item.text.forward
            called = self._given(item, body, back) if body is not None else []
            calls.append((self._function_of(body, tail) if body is not None else "", called))
        words = list(self.leaves)
        words += [f"d{word}" for word in self.results] if back else self.results
        words += [slope for slope, *_ in self.slopes] if back else []
        pointers = [f"{word}_ptr" for word in words]
        out.line("@triton.jit")
        out.call(f"def {self.name}{tail}_kernel(", [*pointers, "E: tl.constexpr"], "):")
        with out.indent():
            first = "Go back through" if back else "Make"
            about = f"{first} some rows of {', '.join(self.results)}."
            out.docstring(_filled(about, out.room) + (self.about if not back else []))
            out.line("copy = tl.program_id(0).to(tl.int64)")
            self._chosen(calls)
        out.blank(2)

    def _chosen(self, calls: list[tuple[str, list[str]]]) -> None:
        """Call the function of the item that the program belongs to."""
        out, items = self.out, self.plan.items
        if any("part" in words for _, words in calls) or len(items) > 1:
            out.line("part = tl.program_id(1)")
        if len(items) == 1:
            ((function, words),) = calls
            out.call(f"{function}(", words)
            return
        ends = []
        for i, item in enumerate(items[:-1]):
            before = f"end_{i} + " if i else ""
            out.line(f"end_{i + 1}: tl.constexpr = {before}{self._parts(item)}")
            ends.append(f"end_{i + 1}")
        for i, (function, words) in enumerate(calls):
            head = "else:" if i == len(items) - 1 else f"{'elif' if i else 'if'} part < {ends[i]}:"
            out.line(head)
            with out.indent():
                if not function:
                    out.line("pass")
                    continue
                texts = [f"part - {ends[i - 1]}" if w == "part" and i else w for w in words]
                out.call(f"{function}(", texts)

    def _given(self, item: LaunchItem, body: Body, back: bool) -> list[str]:
        """What a function is called with."""
        known = {**item.leaves}
        known |= {f"d{w}": f"d{n}" for w, n in item.outputs.items()} if back else item.outputs
        if back:
            known |= self._called(item)
        words = ["copy"] + (["part"] if item.text.axis is not None else [])
        words += [f"{known[word]}_ptr" for word in body.takes]
        return words + ([f"E // {item.text.width}"] if item.text.axis is not None else [])

    def _function_of(self, body: Body, tail: str) -> str:
        """The function of an item; what has the same text is one."""
        own = [line for line in body.text.split("\n") if not line.lstrip().startswith("#")]
        key = (tail, *body.words, *own)
        if key in self.functions:
            return self.functions[key]
        number = sum(other[0] == tail for other in self.functions)
        name = f"{self.name}_rows{f'_{number + 1}' if number else ''}{tail}"
        self.functions[key] = name
        out = self.out
        out.line("@triton.jit")
        out.call(f"def {name}(", list(body.words), "):")
        with out.indent():
            whole = "part" not in body.words
            what = "all of one part" if whole else "some rows of one part"
            out.docstring([f"{'Go back through' if tail else 'Make'} {what} of the map."])
        out.lines += body.text.split("\n")
        out.blank(2)
        return name

    # ---- gradients -----------------------------------------------------------------------------

    def _slopes(self) -> list[tuple[str, Leaf, bool]]:
        """The gradients that programs store: word, leaf, and whether it is of a part or a share."""
        found: dict[str, tuple[str, Leaf, bool]] = {}
        leaves = {leaf.word: leaf for leaf in self.plan.leaves}
        self._names: list[dict[str, str]] = []
        for item in self.plan.items:
            names: dict[str, str] = {}
            for slope in item.text.slopes:
                leaf = leaves[item.leaves[slope.leaf]]
                word = self._word(slope, leaf, found)
                names[slope.word] = word
                found[word] = (word, leaf, slope.split)
            self._names.append(names)
        return list(found.values())

    @staticmethod
    def _word(slope: Slope, leaf: Leaf, found: Mapping[str, object]) -> str:
        if not slope.split:
            return f"share_{leaf.word}"
        word, count = f"part_{leaf.word}", 1
        while word in found:
            count += 1
            word = f"part_{leaf.word}_{count}"
        return word

    def _called(self, item: LaunchItem) -> dict[str, str]:
        return self._names[self.plan.items.index(item)]

    def _everywhere(self, word: str) -> bool:
        """Say whether all items give their share of a gradient."""
        return all(word in names.values() for names in self._names)

    def _gradient(self, leaf: Leaf) -> str:
        """A leaf's gradient, of all shares and parts."""
        mine = [(word, split) for word, own, split in self.slopes if own is leaf]
        if not mine:
            return f"torch.zeros_like({leaf.word})"
        own = "".join(f", {size}" for size in sizes(leaf.own))
        texts = []
        for word, split in mine:
            if leaf.rows and (leaf.copies or self.count == 1):
                texts.append(word if split else f"{word}.sum(0)")
            elif leaf.copies:
                texts.append(f"{word}.view(-1, {self.count}{own}).sum(0)")
            elif leaf.rows:
                texts.append(f"{word}.view(-1, rows, {self.count}{own}).sum((0, 2))")
            else:
                texts.append(f"{word}.view(-1{own}).sum(0, keepdim=True)")
        total = " + ".join(texts)
        if leaf.wide:
            return total
        return f"({total}).to({leaf.word}.dtype)" if len(texts) > 1 else (
            f"{total}.to({leaf.word}.dtype)"
        )  # fmt: skip

    # ---- operations ----------------------------------------------------------------------------

    def _declare(self, name: str, words: list[str], results: int, about: str) -> None:
        out = self.out
        kind = "Tensor" if results == 1 else f"tuple[{', '.join(['Tensor'] * results)}]"
        out.line(f'@torch.library.custom_op("{self.digest}::{name}", mutates_args=())')
        typed = [*(f"{word}: Tensor" for word in words), "rows: int"]
        for text in split_call(f"def {name}(", typed, f") -> {kind}:", out.room):
            out.line(text)
        with out.indent():
            out.docstring([about])

    def _fake(self, name: str, words: list[str]) -> None:
        self.out.line(f"@{name}.register_fake")
        self.out.call("def _(", [*words, "rows"], "):")

    def _room(self, first: str, own: Shape, how: str = "empty") -> str:
        words = [first, *map(str, sizes(own))]
        return f"{self.leaves[0]}.new_{how}({', '.join(words)}, dtype=torch.float32)"

    def _rooms(self) -> None:
        for word, own in self.plan.outputs:
            self.out.line(f"{word} = {self._room(self._copies, own)}")

    @property
    def _copies(self) -> str:
        return "rows" if self.count == 1 else f"rows * {self.count}"

    def _launch(self, tail: str, words: list[str]) -> None:
        out = self.out
        out.line(f"with torch.cuda.device_of({self.leaves[0]}):")
        with out.indent():
            grid = f"{self.name}{tail}_kernel[({self._copies}, parts)]("
            out.call(grid, [*words, "E=E", "num_warps=warps"])

    def _begin(self) -> None:
        out = self.out
        out.line(f"_, E, warps, *_ = {self.table}[architecture({self.leaves[0]}.device)]")
        parts = " + ".join(self._parts(item) for item in self.plan.items)
        if len(parts) + 8 <= out.room:
            out.line(f"parts = {parts}")
            return
        out.line("parts = (")
        for i, item in enumerate(self.plan.items):
            out.line(f"    {'+ ' if i else ''}{self._parts(item)}")
        out.line(")")

    def _forward(self) -> None:
        """The operation, and its fake."""
        out = self.out
        about = "Give all that a launch makes, all copies in a row."
        self._declare(self.op, self.leaves, len(self.results), about)
        with out.indent():
            self._begin()
            self._rooms()
            self._launch("", [*self.leaves, *self.results])
            self.out.returns(self.results)
        out.blank(2)
        self._fake(self.op, self.leaves)
        with out.indent():
            self._rooms()
            self.out.returns(self.results)
        out.blank(2)

    def _back(self) -> None:
        """The operation that goes back, and its place in autograd."""
        out, came = self.out, [f"d{word}" for word in self.results]
        name = f"{self.op}_back"
        self._declare(
            name, [*self.leaves, *came], len(self.leaves), "Give the gradients of what it took."
        )
        with out.indent():
            self._begin()
            for word, leaf, split in self.slopes:
                how = "empty" if split or self._everywhere(word) else "zeros"
                first = self._copies if split else f"parts, {self._copies}"
                out.line(f"{word} = {self._room(first, leaf.own, how)}")
            self._launch("_back", [*self.leaves, *came, *(word for word, *_ in self.slopes)])
            grads = []
            for leaf in self.plan.leaves:
                text = self._gradient(leaf)
                grads.append(text if text.isidentifier() else f"grad_{leaf.word}")
                if not text.isidentifier():
                    out.line(f"grad_{leaf.word} = {text}")
            self.out.returns(grads)
        out.blank(2)
        self._fake(name, [*self.leaves, *came])
        with out.indent():
            self.out.returns([f"torch.empty_like({word})" for word in self.leaves])
        out.blank(2)
        n = len(self.leaves)
        out.line(f"def {self.op}_keep(ctx, inputs, output):")
        out.line(f"    ctx.save_for_backward(*inputs[:{n}])")
        out.line(f"    ctx.rows = inputs[{n}]")
        out.blank(2)
        out.line(f"def {self.op}_gradient(ctx, *came):")
        with out.indent():
            out.line("came = [x.contiguous() for x in came]")
            back = f"{name}(*ctx.saved_tensors, *came, ctx.rows)"
            out.line(f"return {'*' if n > 1 else ''}{back}, None")
        out.blank(2)
        words = [f"{self.op}_gradient", f"setup_context={self.op}_keep"]
        out.call(f"{self.op}.register_autograd(", words)
        out.blank(2)

    # ---- what a memory calls -------------------------------------------------------------------

    def _function(self) -> None:
        """The function that takes tensors as a memory has them."""
        out, plan = self.out, self.plan
        results = len(self.results)
        kind = "Tensor" if results == 1 else f"tuple[{', '.join(['Tensor'] * results)}]"
        typed = [f"{word}: Tensor" for word in self.leaves]
        for text in split_call(f"def {self.name}(", typed, f") -> {kind}:", out.room):
            out.line(text)
        with out.indent():
            out.docstring(_filled(f"Where a window ends: {', '.join(self.results)}.", out.room))
            first = next(leaf for leaf in plan.leaves if leaf.rows)
            lead = "".join(f", {size}" for size in sizes(plan.lead))
            out.line(f"rows = {first.word}.shape[0]")
            if any(leaf.rows and leaf.copies for leaf in plan.leaves):
                out.line(f"front = (rows{lead or ','})")
            given = []
            for leaf in plan.leaves:
                own = "".join(f", {size}" for size in sizes(leaf.own))
                if leaf.rows and leaf.copies:
                    given.append(f"in_rows({leaf.word}, front, {len(leaf.own)}, True, True)")
                else:
                    given.append(f"{leaf.word}.reshape(-1{own}).contiguous()")
            out.call(f"found = {self.op}(", [*given, "rows"])
            texts = []
            for i, (_, shape) in enumerate(plan.outputs):
                own = "".join(f", {size}" for size in sizes(shape))
                value = "found" if results == 1 else f"found[{i}]"
                texts.append(f"{value}.view(rows{lead}{own})")
            self.out.returns(texts)
        out.blank()


def _filled(text: str, room: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, room - 6)
