"""Where values come from inside a window of tokens, and at its last token.

In: leaves and structured operations met while lowering. Out: nodes. What is made outside comes in
pieces; at the end of a window it is the last token's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.codegen import library
from nlc.codegen.arguments import argument_name
from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.names import identifier
from nlc.codegen.program import note
from nlc.codegen.scope import Scope
from nlc.codegen.torch_tiles import read_product
from torch import fx

from nlc.ir.expr import Expr, postorder

# what is whole outside of a window, where nothing inside makes it
OUTSIDE = ("apply", "attend", "shift", "conv", "route")


@dataclass
class WindowScope(Scope):
    """One piece of a sequence: `tokens` in it; what is made outside comes in pieces too.

    `made` are the streams that are made inside, `moving` the memories that move inside.
    """

    around_it: Scope | None = None
    made: frozenset[str] = frozenset()
    moving: frozenset[str] = frozenset()
    count: fx.Node | None = None
    items: dict[str, fx.Node] = field(default_factory=dict)
    whole_values: dict[str, fx.Node] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)

    def tokens(self) -> fx.Node:
        """How many tokens this piece has."""
        assert self.count is not None
        return self.count

    def stream(self, name: str) -> fx.Node | None:
        """A stream's value in this piece."""
        if name not in self.streams and name not in self.made:
            assert self.around_it is not None
            node = self.around_it.stream(name)
            self.streams[name] = None if node is None else self.piece(node, identifier(name))
        return super().stream(name)

    def piece(self, node: fx.Node, name: str) -> fx.Node:
        """A value from outside, for the tokens of this piece."""
        if node.meta.get("bool"):
            assert self.around_it is not None
            node = self.around_it.low.as_number(node)
        batch = batch_of(node)
        if node not in self.names:
            word = self.program.unused(f"{name}_w" if batch == 2 else name)
            self.names[node] = word
            (self.items if batch == 2 else self.whole_values)[word] = node
        inner = self.program.input(self.names[node])
        if batch == 2:
            inner.meta["settled"] = True
        inner.meta["integer"] = node.meta.get("integer", False)
        return note(inner, node.meta["shape"], batch, bool(node.meta["wide"]))

    def depends(self, expr: Expr) -> bool:
        """Say whether a value depends on what is made or moves inside."""
        return any(
            (n.op == "stream" and n.attr("name") in self.made)
            or (n.op in ("state", "attend") and self.moves(n))
            for n in postorder([expr])
        )

    def moves(self, state: Expr) -> bool:
        """Say whether a state moves inside."""
        memory = str(state.attr("memory"))
        kept = state.attr("when") != "initial" or (memory, "initial", "") in self.states
        return memory in self.moving and kept

    def outside(self, expr: Expr) -> fx.Node:
        """A value that is made outside, for this piece."""
        assert self.around_it is not None
        return self.piece(self.around_it.low.tensor(expr), identifier(argument_name(expr)))

    def structured(self, low: Lowering, expr: Expr) -> fx.Node | None:
        """Take from outside what is whole there; all else as in a sequence."""
        if expr in self.aliases:
            return self.stream(str(self.aliases[expr].attr("name")))
        product = read_product(expr, self.unit.memory) is not None
        if (product or expr.op in OUTSIDE) and not self.depends(expr):
            return self.outside(expr)
        return super().structured(low, expr)

    def state(self, expr: Expr) -> fx.Node:
        """A state: those that begin or stay as they are come from outside."""
        memory, when = str(expr.attr("memory")), str(expr.attr("when"))
        kept = (memory, when, str(expr.attr("var"))) in self.states
        if (when == "initial" and not kept) or (memory not in self.moving and when != "initial"):
            return self.outside(expr)
        return super().state(expr)

    def spread(self, x: fx.Node, alike: bool = False) -> fx.Node:
        """Give what is the same at every token all of them."""
        if batch_of(x) != 1:
            return super().spread(x, alike)
        shape, wide = x.meta["shape"], bool(x.meta["wide"])
        x = self.program.method("unsqueeze", x, 1)
        x = self.program.method("expand", x, -1, self.tokens(), *[-1] * len(shape))
        return note(x, shape, 2, wide)


@dataclass
class EndScope(Scope):
    """The last token of a piece, where windows end; `window` is the piece."""

    window: WindowScope | None = None

    def stream(self, name: str) -> fx.Node | None:
        """A stream at the last token."""
        assert self.window is not None
        node = self.window.stream(name)
        return None if node is None else self.last(node)

    def last(self, node: fx.Node) -> fx.Node:
        """A value at the last token."""
        if batch_of(node) < 2:
            return node
        integer = node.meta.get("integer", False)
        found = self.program.call(library.last_token, node)
        found.meta["integer"], found.meta["settled"] = integer, True
        return note(found, node.meta["shape"], 1, bool(node.meta["wide"]))

    def structured(self, low: Lowering, expr: Expr) -> fx.Node | None:
        """What needs the past or other memories, at the last token."""
        assert self.window is not None
        if expr.op == "window":
            return low.tensor(expr.args[0])
        if expr in self.window.aliases or expr.op in ("shift", "conv", "attend", "position"):
            return self.last(self.window.low.tensor(expr))
        if expr.op == "apply":
            states = [part for part in expr.args[1:] if part.op == "state"]
            if states and not all(map(self.is_there, states)):
                return self.last(self.window.low.tensor(expr))
        return super().structured(low, expr)

    def is_there(self, state: Expr) -> bool:
        """Say whether a state is at hand: after the last token, or unchanged in the window."""
        assert self.window is not None
        memory, when = self.unit.memory(str(state.attr("memory"))), str(state.attr("when"))
        if when == "initial":
            return True
        if memory.name not in self.window.moving:
            return False
        # a reset at this token has already happened inside
        kept = memory.reset is None or memory.name in self.window.late
        return memory.window > 1 or (when == "post" and kept)

    def state(self, expr: Expr) -> fx.Node:
        """A state at the end of the last token."""
        assert self.window is not None
        if not self.is_there(expr) or expr.attr("when") == "initial":
            return self.last(self.window.low.tensor(expr))
        return super().state(expr)
