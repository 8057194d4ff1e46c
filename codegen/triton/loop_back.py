"""The kernel of a loop over tokens, back.

In: one token of the loop, and how gradients are found. Out: the kernel's body, and the gradients
that it stores. The last tile comes first: the states before each of its tokens are made again and
kept beside; then tokens are walked in reverse with the gradients of the states on chip. A gradient
of what all programs of a copy share is a share for each: whoever starts the kernel adds them.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlc.codegen.triton.loop_graph import leaf_stream
from nlc.codegen.triton.loop_plan import Held, Slope
from nlc.codegen.triton.loop_split import Places, Splitter
from nlc.codegen.triton.loop_text import LoopText
from nlc.codegen.triton.loop_values import Block, ValuePrinter
from nlc.codegen.triton.operations import Unprintable

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.kernel import Calculus


class BackText(LoopText):
    """Writes the body of the kernel that goes back."""

    def write_back(
        self, calculus: Calculus, takes: dict[str, list[str]]
    ) -> tuple[str, tuple[Slope, ...], dict[str, str]]:
        graph = self.graph.graph
        names = self.frame.names
        dstate = {h.word: names.fresh(f"d{h.word}") for h in self.held}
        drow = {r.word: names.fresh(f"d{r.word}") for r in self.rows}
        seeds = {
            h.word: leaf_stream(graph, dstate[h.word], h.shape, tuple(h.split)) for h in self.held
        }
        seeds |= {
            r.word: leaf_stream(graph, drow[r.word], r.shape, tuple(r.split)) for r in self.rows
        }
        words = [*dstate, *drow]
        reached = [
            (value, summed(graph, seeds[word], value))
            for word, value in zip(words, self.token.roots(), strict=True)
        ]
        own = {self.state(h) for h in self.held}

        def is_leaf(node: Expr) -> bool:
            if node.op != "stream":
                return False
            given = self.given.get(node.attr("name"))
            return node in own or (given is not None and not given.still)

        found = calculus.pull_back(graph, reached, is_leaf)
        if found is None:
            raise Unprintable("it has no gradient")
        self.token.products([*found.values()])
        slopes = self.parts_of(found, {**self.token.words, **_splits(seeds.values())})
        return self._back(dstate, drow, seeds, slopes, takes)

    def parts_of(self, found: dict[Expr, Expr], fixed: dict[str, Places]) -> dict[Expr, Expr]:
        """One program's part of each gradient."""
        if self.axis is None:
            return found
        splitter = Splitter(self.graph.graph, self.graph.lead, self.axis.size, fixed, shares=True)
        return splitter.parts(found)

    def _back(
        self,
        dstate: dict[str, str],
        drow: dict[str, str],
        seeds: dict[str, Expr],
        slopes: dict[Expr, Expr],
        takes: dict[str, list[str]],
    ) -> tuple[str, tuple[Slope, ...], dict[str, str]]:
        names = self.frame.names
        known: dict[Expr, Block] = {}
        forward, backward = (
            self.token.leaves(list(self.graph.after)),
            self.token.leaves([*slopes.values()]),
        )
        self.enter([*forward, *backward], False, "copy", known)
        for held in self.held:
            word = dstate[held.word]
            known[seeds[held.word]] = self.load(
                word, f"{word}_after", held.own, held.split, "copy", once=True
            )
        wanted: list[Slope] = []
        sums: list[tuple[Expr, Slope]] = []
        tokens: list[tuple[Expr, Slope]] = []
        for leaf in slopes:
            given = self.given.get(leaf.attr("name"))
            if given is None:
                continue
            places = frozenset(leaf.attr("split"))
            word = names.fresh(f"d{given.word}_part" if places else f"d{given.word}")
            slope = Slope(word, given, places)
            wanted.append(slope)
            (tokens if given.tokens else sums).append((leaf, slope))
        for _, slope in sums:
            dims = self.frame.dims(slope.leaf.own, slope.split)
            blocks = ", ".join(self.frame.block(d) for d in dims)
            zero = f"tl.zeros([{blocks}], tl.float32)"
            self.out.line(
                f"{slope.word} = {zero if dims else 'tl.sum(tl.zeros([1], tl.float32), 0)'}"
            )
        self.out.line("for step in range(N):")
        with self.out.indent():
            self.out.line("# the last tile first: the states before each of its tokens")
            self.out.line("tile = N - 1 - step")
            self.out.line("count = tl.minimum(C, T - tile * C)")
            before = dict(known)
            for held in self.held:
                start = f"{held.word}_starts"
                before[self.state(held)] = self.load(
                    held.word, start, held.own, held.split, "(copy * N + tile)"
                )
            self.out.line("for s in range(count):")
            with self.out.indent():
                for held in self.held:
                    self.store(f"{held.word}_kept", held.own, held.split,
                        self.kept(held), held.word,
                    )  # fmt: skip
                self.out.line("t = tile * C + s")
                self.at_token()
                self.enter(forward, True, "at", before)
                printer = ValuePrinter(self.frame, self.out, before, self.graph.comments)
                self.advance(printer, printer.run(list(self.graph.after)))
            self.out.line("tl.debug_barrier()")
            self.out.line("for s in range(count):")
            with self.out.indent():
                self._reverse(known, backward, dstate, drow, seeds, slopes, sums, tokens)
            self.out.line("tl.debug_barrier()")
        for _, slope in sums:
            self.store(slope.word, slope.leaf.own, slope.split, self.share(slope.split),
                slope.word,
            )  # fmt: skip
        for held in self.held:
            self.store(dstate[held.word], held.own, held.split, self.share(held.split),
                dstate[held.word],
            )  # fmt: skip
        takes["back"] = [
            *self.given,
            *(f"{h.word}_starts" for h in self.held),
            *(f"{h.word}_kept" for h in self.held),
            *(drow[r.word] for r in self.rows),
            *(f"{dstate[h.word]}_after" for h in self.held),
            *(slope.word for slope in wanted),
            *(dstate[h.word] for h in self.held),
        ]
        return "\n".join([*self.head(), *self.out.lines]), tuple(wanted), dstate | drow

    def _reverse(
        self,
        known: dict[Expr, Block],
        leaves: list[Expr],
        dstate: dict[str, str],
        drow: dict[str, str],
        seeds: dict[str, Expr],
        slopes: dict[Expr, Expr],
        sums: list[tuple[Expr, Slope]],
        tokens: list[tuple[Expr, Slope]],
    ) -> None:
        """One token on the way back."""
        here = dict(known)
        self.out.line("# ... and back, the last token first")
        self.out.line("t = tile * C + count - 1 - s")
        self.at_token()
        for held in self.held:
            if self.state(held) in leaves:
                word = self.frame.names.fresh(f"{held.word}_before")
                here[self.state(held)] = self.load(word, f"{held.word}_kept", held.own, held.split,
                    self.kept(held, "count - 1 - s"),
                )  # fmt: skip
        self.enter(leaves, True, "at", here)
        for row in self.rows:
            if seeds[row.word] in leaves:
                here[seeds[row.word]] = self.load(
                    drow[row.word], drow[row.word], row.own, row.split, "at", once=True
                )
        printer = ValuePrinter(
            self.frame,
            self.out,
            here,
            self.graph.comments,
            set(postorder(self.token.roots())),
            shares=True,
        )
        made = dict(zip(slopes, printer.run([*slopes.values()]), strict=True))
        for leaf, slope in tokens:
            dims = self.frame.dims(slope.leaf.own, slope.split)
            value = made[leaf]
            text = printer.fitted(value, dims) if value.dims != dims else value.text
            start = "at" if slope.split or self.axis is None else (
                "(part.to(tl.int64) * tl.num_programs(0) * T + at)"
            )  # fmt: skip
            self.store(slope.word, slope.leaf.own, slope.split, start, text)
        for leaf, slope in sums:
            value = made[leaf]
            dims = self.frame.dims(slope.leaf.own, slope.split)
            text = value.text if value.dims == dims else printer.fitted(value, dims)
            self.out.line(f"{slope.word} += {text}")
        texts = []
        for held in self.held:
            dims = self.frame.dims(held.own, held.split)
            text = self.full(printer, made.get(self.state(held), Block("0.0")), dims)
            if text in dstate.values() and text != dstate[held.word]:
                fresh = self.frame.names.fresh("x")
                self.out.line(f"{fresh} = {text}")
                text = fresh
            texts.append(text)
        for held, text in zip(self.held, texts, strict=True):
            if text != dstate[held.word]:
                self.out.line(f"{dstate[held.word]} = {text}")

    def kept(self, held: Held, s: str = "s") -> str:
        """Where the state before a token of the tile is kept."""
        copy = "copy" if held.split or self.axis is None else self.share(held.split)
        return f"({copy} * C + {s})"

    def share(self, places: Places) -> str:
        """Where a program's share of a copy stands."""
        if places or self.axis is None:
            return "copy"
        return "(part * tl.num_programs(0) + copy)"


def _splits(leaves: Iterable[Expr]) -> dict[str, Places]:
    return {leaf.attr("name"): frozenset(leaf.attr("split")) for leaf in leaves}


def summed(graph: Graph, seed: Expr, value: Expr) -> Expr:
    """What reaches a value from the gradient of the state, with more axes, that it becomes."""
    missing = len(seed.shape) - len(value.shape)
    thin = tuple(
        p for p in range(-len(value.shape), 0)
        if value.shape[p].size == 1 and seed.shape[p].size > 1
    )  # fmt: skip
    if thin:
        seed = graph.make("sum", seed, axes=thin, keep=True)
    if missing:
        front = tuple(range(-len(seed.shape), -len(value.shape)))
        seed = graph.make("sum", seed, axes=front, keep=False)
    return seed
