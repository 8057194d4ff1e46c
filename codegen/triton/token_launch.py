"""What starts the kernel of one token: an operation of torch without gradients, and its fake.

In: a `LoopPlan` of one token. Out: the text of `NAME_token_op`, over all copies in a row, and of
`NAME_token`, which a block calls while decoding; `NAME_step` is that of one memory by itself.
"""

from __future__ import annotations

from nlc.codegen.triton.loop_launch import LoopLaunch

from nlc.ir.kernel import Emitted
from nlc.ir.shape import sizes


class TokenLaunch(LoopLaunch):
    """Writes what belongs to one token."""

    kind = "token"
    told = "Move by one token, without gradients: the streams it makes, and the states after it."

    def write(self, made: list[Emitted]) -> str:
        """Write everything."""
        self.blocks()
        self.kernel(self.kind, "forward", "Move by one token", self.plan.forward, "V")
        self.forward()
        self.function()
        made.append(self.emitted(self.kind))
        return self.out.text()

    def forward(self) -> None:
        """The operation that moves by one token."""
        plan, out = self.plan, self.out
        given = [*self.leaves, *self.states]
        results = [*self.rows, *self.after]
        about = "Give streams and states after one token, all copies in a row."
        words = [f"{word}: Tensor" for word in given]
        self.declare(self.op, words, ["Tensor"] * len(results), about)
        with out.indent():
            self.made()
            out.line(f"blocks = {self.table}[architecture({self.like}.device)]")
            grid = f"({self.like}.shape[0],)"
            if plan.axis is not None:
                grid = f"({self.like}.shape[0], -(-{plan.axis.size} // blocks.channels))"
            taken = [*plan.takes["forward"], *(["V=blocks.channels"] if plan.parts else [])]
            out.line(f"with torch.cuda.device_of({self.like}):")
            with out.indent():
                out.call(
                    f"{plan.name}_{self.kind}_kernel[{grid}](", [*taken, "num_warps=blocks.warps"]
                )
            self.out.returns(results)
        out.blank(2)
        out.line(f"@{self.op}.register_fake")
        out.call("def _(", given, "):")
        with out.indent():
            self.made()
            self.out.returns(results)
        out.blank(2)

    def made(self) -> None:
        """Room for what the kernel stores."""
        for row in self.plan.rows:
            room = self.room(f"{self.like}.shape[0]", sizes(row.own))
            self.out.line(f"{row.word} = {room}")
        for state in self.states:
            self.out.line(f"{state}_after = torch.empty_like({state})")


class StepLaunch(TokenLaunch):
    """Writes what belongs to one token of one memory, which its own `step` calls."""

    kind = "step"
