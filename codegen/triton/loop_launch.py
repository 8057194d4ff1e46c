"""What starts the kernels of a loop over tokens: an operation of torch, its fake, its backward.

In: a `LoopPlan`. Out: the text of

    NAME_loop_op, NAME_loop_op_back   tensors [B, T, H, *own], or [B * H, *own] of all copies
    NAME_loop                         what a block calls: leaves and states -> streams, states
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlc.codegen.names import identifier
from nlc.codegen.triton.loop_plan import Held, LoopPlan
from nlc.codegen.triton.operations import block
from nlc.codegen.triton.table import OF_LOOP, loop_sizes, power_of_two
from nlc.codegen.writer import Writer, split_call

from nlc.ir.kernel import Emitted
from nlc.ir.shape import sizes

ROLES = ("loop", "loop_back")


def write_loop(plan: LoopPlan, about: Sequence[str], digest: str, made: list[Emitted]) -> str:
    """Write the kernels of a loop and what starts them."""
    if plan.once:
        from nlc.codegen.triton.token_launch import TokenLaunch

        return TokenLaunch(plan, list(about), digest).write(made)
    return LoopLaunch(plan, list(about), digest).write(made)


def loop_states(plan: LoopPlan) -> dict[str, list[Held]]:
    """The states by the variable that a block holds them in; several are the parts of one."""
    found: dict[str, list[Held]] = {}
    for variable, held in zip(plan.variables, plan.held, strict=True):
        found.setdefault(variable, []).append(held)
    return found


class LoopLaunch:
    """Writes what belongs to one loop."""

    kind = "loop"
    told = "Walk over a sequence: the streams it makes, and the states after it."

    def __init__(self, plan: LoopPlan, about: list[str], digest: str):
        self.plan, self.about, self.digest = plan, about, digest
        self.table = f"{plan.name.upper()}_{self.kind.upper()}_BLOCKS"
        self.op = f"{plan.name}_{self.kind}_op"
        self.out = Writer()
        self.leaves = [g.word for g in plan.given]
        self.states = [h.word for h in plan.held]
        self.rows = [r.word for r in plan.rows]
        self.starts = [] if plan.once else [f"{word}_starts" for word in self.states]
        self.after = [f"{word}_after" for word in self.states]
        self.like = next((g.word for g in plan.given if g.tokens), self.states[0])

    def write(self, made: list[Emitted]) -> str:
        """Write everything."""
        plan = self.plan
        self.blocks()
        self.kernel("loop", "forward", "Walk over all tokens", plan.forward, "C", "V", "KEEP")
        if plan.back:
            about = "Walk back over all tokens"
            self.kernel("loop_back", "back", about, plan.back, "C", "V")
        self.forward()
        if plan.back:
            self.back()
        self.function()
        made += [self.emitted(role) for role in ROLES[: 2 if plan.back else 1]]
        return self.out.text()

    def blocks(self) -> None:
        """The table of block sizes."""
        plan, out = self.plan, self.out
        out.line(f"{self.table} = {{")
        rows = loop_sizes(self.entries, self.channels, plan.channels, plan.warps)
        for machine, row in rows.items():
            out.line(f'    "{machine}": Blocks{row},')
        out.line("}")
        out.blank(2)

    def emitted(self, role: str) -> Emitted:
        """What is known of a kernel."""
        plan = self.plan
        narrow = frozenset(g.word for g in plan.given if not g.wide)
        largest = max((sizes(h.own) for h in plan.held), key=lambda s: (len(s), s))
        rows, columns = (*largest, 1, 1)[:2]
        name, back = f"{plan.name}_{role}_kernel", role == "loop_back"
        # what nobody measures both ways has the rows that it has
        kind = OF_LOOP if plan.back else ""
        return Emitted(
            name, plan.name, role, self.table, narrow, back, columns, rows, kind,
            walks=True, size=power_of_two(self.entries), channels=self.channels,
        )  # fmt: skip

    @property
    def entries(self) -> int:
        """Entries of all states of one copy."""
        return sum(math.prod(sizes(held.own)) for held in self.plan.held)

    @property
    def channels(self) -> tuple[int, int]:
        """How many rows of its states a program may have, at least and at most."""
        axis, least = self.plan.axis, self.plan.least
        return (least, max(least, block(axis.size))) if axis is not None else (1, 1)

    def kernel(self, role: str, which: str, about: str, body: str, *constants: str) -> None:
        plan, out = self.plan, self.out
        words = [f"{word}_ptr" for word in plan.takes[which]]
        words += [] if plan.once else ["T", "H", "N"]
        words += [f"{c}: tl.constexpr" for c in constants if c != "V" or plan.parts]
        each = "some rows of each sequence and copy" if plan.parts else "each sequence and copy"
        out.line("@triton.jit")
        out.call(f"def {plan.name}_{role}_kernel(", words, "):")
        with out.indent():
            out.docstring([f"{about}, a program for {each}.", *self.about])
        out.lines += body.split("\n")
        out.blank(2)

    def declare(self, name: str, words: list[str], kinds: Sequence[str], about: str) -> None:
        """The head of an operation."""
        out = self.out
        kind = kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"
        out.line(f'@torch.library.custom_op("{self.digest}::{name}", mutates_args=())')
        for text in split_call(f"def {name}(", words, f") -> {kind}:", out.room):
            out.line(text)
        with out.indent():
            out.docstring([about])

    def sizes(self, back: bool = False) -> None:
        """What both operations begin with."""
        out = self.out
        held = self.starts[0] if back else self.states[0]
        out.line(f"B, T = {self.like}.shape[:2]")
        out.line(f"H = {held}.shape[0] // B")
        out.line(f"blocks = {self.table}[architecture({self.like}.device)]")
        out.line("N = -(-T // blocks.tokens)")

    def room(self, first: str, own: tuple[int, ...]) -> str:
        """Room for values in float32."""
        words = [*first.split(", "), *map(str, own)]
        return f"{self.like}.new_empty({', '.join(words)}, dtype=torch.float32)"

    def launch(self, role: str, which: str, constants: list[str]) -> None:
        plan, out = self.plan, self.out
        grid = "(B * H,)"
        if plan.axis is not None:
            grid = f"(B * H, -(-{plan.axis.size} // blocks.channels))"
        words = [*plan.takes[which], "T", "H", "N", "C=blocks.tokens"]
        words += ["V=blocks.channels"] if plan.parts else []
        words += [*constants, f"num_warps=blocks.{'loop_warps' if which == 'back' else 'warps'}"]
        words.append("num_stages=blocks.stages")
        out.line(f"with torch.cuda.device_of({self.like}):")
        with out.indent():
            out.call(f"{plan.name}_{role}_kernel[{grid}](", words)

    # ---- forward -------------------------------------------------------------------------------

    def made(self) -> None:
        """Room for what the kernel stores."""
        out = self.out
        for row in self.plan.rows:
            out.line(f"{row.word} = {self.room('B, T, H', sizes(row.own))}")
        for held, starts in zip(self.plan.held, self.starts, strict=True):
            out.line(f"{starts} = {self.room('B * H, N if keep else 0', sizes(held.own))}")
        for held, after in zip(self.plan.held, self.after, strict=True):
            out.line(f"{after} = torch.empty_like({held.word})")

    def forward(self) -> None:
        """The operation that walks over a sequence."""
        out = self.out
        words = [f"{word}: Tensor" for word in (*self.leaves, *self.states)] + ["keep: bool"]
        results = [*self.rows, *self.starts, *self.after]
        about = "Give streams, the states before each tile where they are to be kept, and the last."
        self.declare(self.op, words, ["Tensor"] * len(results), about)
        with out.indent():
            self.sizes()
            self.made()
            self.launch("loop", "forward", ["KEEP=keep"])
            self.out.returns(results)
        out.blank(2)
        out.line(f"@{self.op}.register_fake")
        out.call("def _(", [*self.leaves, *self.states, "keep"], "):")
        with out.indent():
            self.sizes()
            self.made()
            self.out.returns(results)
        out.blank(2)

    # ---- back ----------------------------------------------------------------------------------

    def back(self) -> None:
        """The operation that walks back, and its place in autograd."""
        plan, out = self.plan, self.out
        drow = [plan.dwords[word] for word in self.rows]
        dstate = [plan.dwords[word] for word in self.states]
        dafter = [f"{word}_after" for word in dstate]
        came = [*drow, *dafter]
        words = [f"{word}: Tensor" for word in (*self.leaves, *self.starts, *came)]
        results = [f"grad_{word}" for word in (*self.leaves, *self.states)]
        name = f"{self.op}_back"
        self.declare(name, words, ["Tensor"] * len(results), "Give the gradients of what it took.")
        with out.indent():
            self.sizes(back=True)
            shared = [*(s.split for s in plan.slopes), *(h.split for h in plan.held)]
            if plan.axis is not None and not all(shared):
                out.line(f"parts = -(-{plan.axis.size} // blocks.channels)")
            for held in plan.held:
                count = "B * H" if held.split or not plan.parts else "parts * B * H"
                out.line(
                    f"{held.word}_kept = {self.room(f'{count}, blocks.tokens', sizes(held.own))}"
                )
            for slope in plan.slopes:
                own = sizes(slope.leaf.own)
                first = "B, T, H" if slope.leaf.tokens else "B * H"
                first = first if slope.split or not plan.parts else f"parts, {first}"
                out.line(f"{slope.word} = {self.room(first, own)}")
            for held, word in zip(plan.held, dstate, strict=True):
                first = "B * H" if held.split or not plan.parts else "parts, B * H"
                out.line(f"{word} = {self.room(first, sizes(held.own))}")
            self.launch("loop_back", "back", [])
            for given in plan.given:
                out.line(f"grad_{given.word} = {self.whole(given.word)}")
            for held, word in zip(plan.held, dstate, strict=True):
                share = "" if held.split or not plan.parts else ".sum(0)"
                out.line(f"grad_{held.word} = {word}{share}")
            self.out.returns(results)
        out.blank(2)
        out.line(f"@{name}.register_fake")
        out.call("def _(", [*self.leaves, *self.starts, *came], "):")
        with out.indent():
            like = [*self.leaves, *dafter]
            self.out.returns([f"torch.empty_like({word})" for word in like])
        out.blank(2)
        n, m = len(self.leaves), len(self.rows)
        s = len(self.states)
        out.line(f"def {self.op}_keep(ctx, inputs, output):")
        out.line(f"    ctx.save_for_backward(*inputs[:{n}], *output[{m}:{m + s}])")
        out.blank(2)
        out.line(f"def {self.op}_gradient(ctx, *came):")
        with out.indent():
            out.line(f"came = [x.contiguous() for x in (*came[:{m}], *came[{m + s}:])]")
            out.line(f"return *{name}(*ctx.saved_tensors, *came), None")
        out.blank(2)
        words = [f"{self.op}_gradient", f"setup_context={self.op}_keep"]
        out.call(f"{self.op}.register_autograd(", words)
        out.blank(2)

    def whole(self, word: str) -> str:
        """A leaf's gradient, of all shares and parts."""
        found = [slope for slope in self.plan.slopes if slope.leaf.word == word]
        if not found:
            return f"torch.zeros_like({word})"
        texts = [
            slope.word if slope.split or not self.plan.parts else f"{slope.word}.sum(0)"
            for slope in found
        ]
        if found[0].leaf.tokens and not found[0].leaf.copies:
            # of all copies
            over = "sum" if found[0].leaf.alike else "squeeze"
            texts = [f"{text}.{over}(2)" for text in texts]
        total = " + ".join(texts)
        total = f"({total})" if len(texts) > 1 else total
        return f"{total}.to({word}.dtype)"

    # ---- what a block calls --------------------------------------------------------------------

    def function(self) -> None:
        """The function that takes tensors as a block has them."""
        plan, out = self.plan, self.out
        states = loop_states(plan)
        several = {v for v, held in states.items() if plan.keys[held[0].word]}
        kinds = {v: "dict[str, Tensor]" if v in several else "Tensor" for v in states}
        words = [*(f"{word}: Tensor" for word in self.leaves)]
        # the parts of a state come as one dict
        taken = {v: v if v in several else held[0].word for v, held in states.items()}
        words += [f"{taken[variable]}: {kind}" for variable, kind in kinds.items()]
        results = ["Tensor"] * len(self.rows) + list(kinds.values())
        kind = results[0] if len(results) == 1 else f"tuple[{', '.join(results)}]"
        head = f"def {plan.name}_{self.kind}("
        for text in split_call(head, words, f") -> {kind}:", out.room):
            out.line(text)
        with out.indent():
            out.docstring([self.told])
            for variable in states:
                for held in states[variable]:
                    if variable in several:
                        key = plan.keys[held.word]
                        out.line(f'{held.word} = {variable}["{key}"]')
            first = plan.held[0]
            out.line(f"front = {first.word}.shape[:{1 + plan.lead}]")
            given = [
                f"each_token({g.word}, front, {len(g.own)}, {tokens}, {g.copies})"
                if g.tokens
                else f"in_rows({g.word}, front, {len(g.own)}, {g.rows}, {g.copies})"
                for g in plan.given
                for tokens in [f"{self.like}.shape[1]"]
            ]
            given += [f"in_rows({h.word}, front, {len(h.own)}, True, True)" for h in plan.held]
            given += [] if plan.once else ["torch.is_grad_enabled()"]
            out.call(f"found = {self.op}(", given)
            self.results(states, several)
        out.blank()

    def results(self, states: dict[str, list[Held]], several: set[str]) -> None:
        """What is given back, as a block has it."""
        plan, out = self.plan, self.out
        n, s = len(self.rows), len(self.starts)
        one = n + s + len(self.states) == 1
        texts = []
        narrow = next((g.word for g in plan.given if g.tokens and not g.wide), "")
        narrow = narrow or next((g.word for g in plan.given if not g.wide), "")
        for i, row in enumerate(plan.rows):
            front = "*front" if plan.once else f"front[0], {self.like}.shape[1], *front[1:]"
            own = "".join(f", {size}" for size in sizes(row.own))
            cast = "" if row.wide else f".to({narrow}.dtype)"
            texts.append(f"found[{i}].reshape({front}{own}){cast}")
        places = {h.word: i + n + s for i, h in enumerate(plan.held)}
        for variable, held in states.items():
            made = {h.word: "found" if one else f"found[{places[h.word]}]" for h in held}
            parts = [f"{made[h.word]}.reshape({h.word}.shape)" for h in held]
            if variable not in several:
                texts.append(parts[0])
                continue
            inside = ", ".join(
                f'"{plan.keys[h.word]}": {text}' for h, text in zip(held, parts, strict=True)
            )
            name = identifier(f"{variable}_new")
            line = f"{name} = {{{inside}}}"
            if len(line) <= out.room:
                out.line(line)
            else:
                out.line(f"{name} = {{")
                for h, text in zip(held, parts, strict=True):
                    out.line(f'    "{plan.keys[h.word]}": {text},')
                out.line("}")
            texts.append(name)
        self.out.returns(texts)
