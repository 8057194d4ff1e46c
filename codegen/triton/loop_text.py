"""The kernel of a loop over tokens, forward.

In: one token of the loop. Out: the kernel's body. A program has one copy of one sequence, or some
rows of it, and walks over all tokens with its states on chip; where each tile of C tokens begins,
it stores them for the way back.
"""

from __future__ import annotations

from nlc.codegen.names import Names
from nlc.codegen.triton.loop_graph import leaf_stream
from nlc.codegen.triton.loop_plan import Held, Token
from nlc.codegen.triton.loop_split import Places
from nlc.codegen.triton.loop_values import Block, Dims, Frame, ValuePrinter
from nlc.codegen.triton.operations import block
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr
from nlc.ir.shape import Axis, Shape


class BlockText:
    """Lines of a function that loads and stores blocks; `axis` is what a program has a part of."""

    def __init__(self, frame: Frame, axis: Axis | None):
        self.frame, self.axis = frame, axis
        self.out = Writer()
        self.out.depth = 1

    def load(
        self, word: str, tensor: str, shape: Shape, split: Places,
        start: str, once: bool = False,
    ) -> Block:  # fmt: skip
        """`word = tl.load(...)`; with `once` the first part of a copy alone has it."""
        dims = self.frame.dims(shape, split)
        mask = self.frame.mask(dims)
        if once and self.axis is not None and not split:
            mask = f"({mask}) & (part == 0)" if mask else "part == 0"
        words = [f"{tensor}_ptr + {self.frame.offset(start, shape, dims)}"]
        words += [mask, "0.0"] if mask else []
        words[0] = self.pointer(words)
        line = f"{word} = tl.load({', '.join(words)}).to(tl.float32)"
        if len(line) <= self.out.room:
            self.out.line(line)
        else:
            self.out.call(f"{word} = tl.load(", words)
            self.out.line(f"{word} = {word}.to(tl.float32)")
        return Block(word, dims)

    def store(
        self, tensor: str, shape: Shape, split: Places, start: str,
        value: str,
    ) -> None:  # fmt: skip
        dims = self.frame.dims(shape, split)
        mask = self.frame.mask(dims)
        words = [f"{tensor}_ptr + {self.frame.offset(start, shape, dims)}", value]
        words += [mask] if mask else []
        words[0] = self.pointer(words)
        self.out.call("tl.store(", words)

    def pointer(self, words: list[str]) -> str:
        """What is loaded or stored at, with a line of its own where it is too long for one."""
        if len(words[0]) + 5 <= self.out.room:
            return words[0]
        tensor, _, rest = words[0].partition(" + ")
        self.out.line(f"place = {rest}")
        return f"{tensor} + place"

    def full(self, printer: ValuePrinter, value: Block, dims: Dims) -> str:
        """A value with all axes of what it becomes, which may have more."""
        if value.dims == dims:
            text = value.text
            number = _is_number(text)
            return f"tl.sum(tl.full([1], {text}, tl.float32), 0)" if number else text
        blocks = ", ".join(self.frame.block(d) for d in dims)
        return f"{printer.fitted(value, dims)} + tl.zeros([{blocks}], tl.float32)"

    def along(self) -> list[str]:
        """What numbers the entries of axes, and where those of a matrix stand."""
        out = Writer()
        out.depth = 1
        for (size, in_part), word in self.frame.numbers.items():
            if in_part:
                out.line(f"{word} = part * V + tl.arange(0, V)  # some of {size}")
            else:
                out.line(
                    f"{word} = tl.arange(0, {max(self.frame.least, block(size))})  # of {size}"
                )
        for text, word in self.frame.entries.items():
            out.line(f"{word} = {text}")
        return out.lines


class LoopText(BlockText):
    """Writes the body of a kernel."""

    def __init__(self, token: Token):
        self.token = token
        self.graph = token.graph
        self.given, self.held, self.rows = token.given, token.held, token.rows
        super().__init__(Frame(token.graph.lead, Names(set(token.names)), token.least), token.axis)

    def enter(
        self, leaves: list[Expr], tokens: bool, start: str,
        known: dict[Expr, Block],
    ) -> None:  # fmt: skip
        """Load the leaves of a token, or those that are the same at all tokens."""
        for leaf in leaves:
            given = self.given.get(leaf.attr("name"))
            if given is None or given.tokens != tokens or leaf in known:
                continue
            places = frozenset(leaf.attr("split"))
            word = f"{given.word}_part" if places else given.word
            word = self.frame.names.fresh(word) if places else word
            # what is one for all copies is there once
            own = "row" if given.tokens and given.alike else start
            known[leaf] = self.load(word, given.word, given.own, places, own)

    def state(self, held: Held) -> Expr:
        return leaf_stream(self.graph.graph, held.word, held.shape, tuple(held.split))

    def advance(self, printer: ValuePrinter, values: list[Block]) -> None:
        """`M = ...` for all states at once."""
        words = [h.word for h in self.held]
        texts = []
        for held, value in zip(self.held, values, strict=True):
            text = self.full(printer, value, self.frame.dims(held.own, held.split))
            if text in words and text != held.word:
                fresh = self.frame.names.fresh(f"new_{held.word}")
                self.out.line(f"{fresh} = {text}")
                text = fresh
            texts.append(text)
        for word, text in zip(words, texts, strict=True):
            if text != word:
                self.out.line(f"{word} = {text}")

    def at_token(self) -> None:
        """Write where token t of the sequence stands in [B, T], and of the copy in [B, T, H]."""
        self.out.line("row = copy // H * T + t")
        self.out.line("at = row * H + copy % H")

    def head(self) -> list[str]:
        """What every kernel begins with."""
        out = Writer()
        out.depth = 1
        out.line("copy = tl.program_id(0).to(tl.int64)")
        if self.axis is not None:
            out.line("part = tl.program_id(1)")
        return [*out.lines, *self.along()]

    def write(self, takes: dict[str, list[str]]) -> str:
        """Write the body, and say which tensors it takes."""
        values = self.token.roots()
        leaves = self.token.leaves(values)
        known: dict[Expr, Block] = {}
        self.enter(leaves, False, "copy", known)
        for held in self.held:
            if not self.token.once or self.state(held) in leaves:
                word = held.word
                known[self.state(held)] = self.load(word, word, held.own, held.split, "copy")
        if self.token.once:
            self.one_token(values, known)
        else:
            self.all_tokens(values, leaves, known)
        starts = [] if self.token.once else [f"{h.word}_starts" for h in self.held]
        takes["forward"] = [
            *self.given,
            *(h.word for h in self.held),
            *(r.word for r in self.rows),
            *starts,
            *(f"{h.word}_after" for h in self.held),
        ]
        return "\n".join([*self.head(), *self.out.lines])

    def one_token(self, values: list[Expr], known: dict[Expr, Block]) -> None:
        """Move by one token: what is given has one row for each copy."""
        printer = ValuePrinter(self.frame, self.out, known, self.graph.comments)
        made = printer.run(values)
        self.store_rows(printer, made[len(self.held) :], "copy")
        for held, value in zip(self.held, made, strict=False):
            dims = self.frame.dims(held.own, held.split)
            text = self.full(printer, value, dims)
            self.store(f"{held.word}_after", held.own, held.split, "copy", text)

    def all_tokens(self, values: list[Expr], leaves: list[Expr], known: dict[Expr, Block]) -> None:
        """Walk over all tokens, tile by tile."""
        self.out.line("for tile in range(N):")
        with self.out.indent():
            self.out.line("if KEEP:")
            with self.out.indent():
                self.out.line("# the way back begins from here")
                for held in self.held:
                    start, place = f"{held.word}_starts", "(copy * N + tile)"
                    self.store(start, held.own, held.split, place, held.word)
            self.out.line("for t in range(tile * C, tl.minimum(tile * C + C, T)):")
            with self.out.indent():
                self.at_token()
                self.enter(leaves, True, "at", known)
                printer = ValuePrinter(self.frame, self.out, known, self.graph.comments)
                made = printer.run(values)
                self.store_rows(printer, made[len(self.held) :], "at")
                self.advance(printer, made[: len(self.held)])
        for held in self.held:
            self.store(f"{held.word}_after", held.own, held.split, "copy", held.word)

    def store_rows(self, printer: ValuePrinter, values: list[Block], start: str) -> None:
        """Store the streams of a token."""
        for row, value in zip(self.rows, values, strict=True):
            dims = self.frame.dims(row.own, row.split)
            text = printer.fitted(value, dims) if value.dims != dims else value.text
            self.store(row.word, row.own, row.split, start, text)


def _is_number(text: str) -> bool:
    """Say whether a text is a number."""
    try:
        float(text.strip("()"))
    except ValueError:
        return False
    return True
