"""What only the parts compute that a token selects, of a memory with slots.

In: a `Lowering` for all parts, and the node that says which are selected: `Chosen` for one token,
`Blocks` for the tokens of a window. Out: nodes whose leading axes have size 1, for one row each
(one token), or for blocks of tokens of one part. What does not hang on the memory's states is
built for all parts, as ever, and taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlc.codegen import library_slots
from nlc.codegen.apply import applied, apply_parts
from nlc.codegen.arguments import state_name
from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.shape import ONE, Shape, sizes
from nlc.ir.slots import Choice, choice, is_state, leading
from nlc.ir.system import Memory

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


@dataclass
class Selected:
    """Builds for rows (`batch` 1) or blocks (2); `own` hang on the states, `leaf` gives these."""

    dense: Lowering
    memory: Memory
    choice: Choice
    chosen: fx.Node
    batch: int
    own: set[Expr]
    leaf: Callable[[Expr], fx.Node]
    low: Lowering = field(init=False)
    # what is made of the weights, which are 0 where a block has no token
    weighed: set[Expr] = field(default_factory=set)
    # what the block gives, as it is for all parts
    given: Collection[Expr] = ()

    def __post_init__(self) -> None:
        low = self.dense
        self.low = Lowering(low.program, self.batch, self.leaf, self.structured, low.like)

    def structured(self, low: Lowering, expr: Expr) -> Operand | None:
        """States of the selected parts, and what is there for all."""
        if is_state(expr, self.memory.name):
            node = self.state(self.leaf(expr))
            word = state_name(self.memory, str(expr.attr("var")))
            part = str(expr.attr("part")) if len(self.memory.map.parts) > 1 else ""
            node.meta.setdefault("name", "_".join(w for w in (word, part, "rows") if w))
            return node
        if self.batch == 2 and expr is self.choice.route:
            return self.weights()
        if expr not in self.given and (expr in self.own or expr in self.weighed):
            return applied(self.low, expr) if expr.op == "apply" else None
        value = self.dense.value(expr)
        if not isinstance(value, fx.Node) or value.meta.get("flag"):
            return value
        return self.bring(value, leading(expr.shape, self.memory.lead))

    def state(self, value: fx.Node) -> fx.Node:
        """The selected parts of a state."""
        program, shape = self.dense.program, value.meta["shape"]
        if self.batch == 2:
            node = program.call(library_slots.parts_in_blocks, value, self.chosen)
        else:
            has = (True,) * len(self.memory.lead)
            node = program.call(library_slots.rows, value, self.chosen, has)
        return note(node, shape, 1, wide=True)

    def weights(self) -> fx.Node:
        """The weights of the tokens in their blocks."""
        program, route = self.dense.program, self.choice.route
        node = program.call(getattr, self.chosen, "weights")
        for _ in route.shape:
            node = program.method("unsqueeze", node, -1)
        return note(node, route.shape, 2, wide=True)

    def bring(self, value: fx.Node, has: tuple[bool, ...]) -> fx.Node:
        """A value for all parts, for the selected ones."""
        if batch_of(value) == 0 and not any(has):
            return value
        program, shape, wide = self.dense.program, value.meta["shape"], value.meta["wide"]
        kept = {key: value.meta[key] for key in ("bool", "integer") if value.meta.get(key)}
        if batch_of(value) == 0:
            value = program.method("unsqueeze", value, 0)
        if self.batch == 2 and batch_of(value) < 2:
            value = program.call(library_slots.at_tokens, value, self.chosen)
        function = library_slots.rows if self.batch == 1 else library_slots.tokens_in_blocks
        node = note(program.call(function, value, self.chosen, has), shape, self.batch, wide)
        node.meta |= kept
        return node

    def put(self, writer: MemoryWriter, value: Expr, old: fx.Node) -> fx.Node:
        """A new state: the selected parts' new values among all."""
        program = self.dense.program
        node = writer.full(self.low, self.low.tensor(value), self.state(old))
        found = program.call(library_slots.with_rows, old, self.chosen, node)
        return note(found, old.meta["shape"], 1, wide=True)

    def total(self, node: fx.Node, shape: Shape) -> fx.Node:
        """What blocks sum over their tokens, summed into all parts."""
        program = self.dense.program
        found = program.call(library_slots.sum_into_parts, node, self.chosen)
        return note(found, shape, 1, wide=True)


def choose(low: Lowering, memory: Memory, choice: Choice, weights: fx.Node, count: int) -> fx.Node:
    """Say which parts are selected, for one token or for all tokens of a window."""
    program, batch = low.program, batch_of(weights)
    has = leading(choice.route.shape, memory.lead)
    for place, here in enumerate(has):
        if not here:
            weights = program.method("unsqueeze", weights, batch + place)
    lead = sizes(memory.lead)
    if batch == 2:
        node = program.call(library_slots.dispatch, weights, count, lead)
        node.meta["name"] = "blocks"
    else:
        node = program.call(library_slots.choose, weights, count, lead)
        node.meta["name"] = "chosen"
    return node


def routed_name(batch: int, more: int) -> str:
    """The method that reads the selected parts, by a query with so many further axes."""
    word = {1: "read_routed_step", 2: "read_routed"}[batch]
    return f"{word}_{more}" if more else word


def write_routed(writer: MemoryWriter, out: Writer, batch: int) -> None:
    """Write the reads M(q) summed over the parts that tokens select."""
    for more in sorted({int(var or 0) for kind, _, var, _ in writer.reads if kind == "routed"}):
        _routed(writer, out, batch, more)


def _routed(writer: MemoryWriter, out: Writer, batch: int, more: int) -> None:
    """Write one read: for one token, or for the tokens of a window."""
    memory, name = writer.memory, writer.states[0]
    found, lead = choice(memory), len(memory.lead)
    assert found is not None
    where = {1: "one token", 2: "all tokens of a window"}[batch]
    words = ["q: Tensor", "weights: Tensor", f"{name}: {writer.state_type()}"]
    about = f"Read {memory.name}(q) at {where}: the parts that have weights."
    writer.method(out, routed_name(batch, more), words, "Tensor", about)
    program, further = Program(), (ONE,) * more
    q = note(program.input("q"), (*memory.lead, *further, *memory.map.inputs), batch)
    weights = note(program.input("weights"), found.route.shape, batch, wide=True)
    states = writer.state_input(program, "", name)
    dense = Lowering(program, batch, lambda expr: q, lambda low, expr: None, q)
    chosen = choose(dense, memory, found, weights, found.selected)
    selected = Selected(dense, memory, found, chosen, batch, set(), lambda expr: q)
    parts = {part: selected.state(state) for part, state in states.items()}
    asked = selected.bring(q, (True,) * lead)
    stream = Expr("stream", (), (("name", "q"),), asked.meta["shape"])
    attrs = (("lead", lead), ("map", memory.map))
    node = Expr("apply", (stream,), attrs, (*memory.lead, *further, *memory.map.outputs))
    low = Lowering(program, batch, lambda expr: asked, lambda low, expr: None, q)
    y = apply_parts(low, node, parts)
    into = library_slots.sum_rows if batch == 1 else library_slots.sum_into_tokens
    y = program.call(into, y, chosen)
    y = program.method("to", y, program.call(getattr, q, "dtype"))
    writer.finish(out, program, [y])
