"""The method that moves a memory: `step` at every token, or `update` at the end of a window.

In: a `MemoryWriter`. Out: the method's text. It takes what the block has evaluated, the states and
what is kept of the window, and whether the periods inside the update end; it gives all of that
back as it is afterwards. Before that, `ask1` and so on say where the task's gradient is asked for
once more.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from nlc.codegen import library
from nlc.codegen.added_sums import add_product
from nlc.codegen.arguments import state_name
from nlc.codegen.in_place import write_into_old
from nlc.codegen.kept import Keep, flag, flag_words, keeps
from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.program import choose as pick
from nlc.codegen.selected import Selected, choose
from nlc.codegen.token_sums import sum_of_tokens
from nlc.codegen.triton.step_call import call_step
from nlc.codegen.triton.window_call import write_launches
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.added import Added, added
from nlc.ir.expr import Expr, postorder
from nlc.ir.online import asks
from nlc.ir.slots import choice, is_state, own
from nlc.ir.system import Memory
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


@dataclass
class Move:
    """How a memory moves: the program, the states and what is kept after it.

    `own` says that `update` writes into states that are its caller's own.
    """

    program: Program
    results: list[object]
    own: bool


def build_move(writer: MemoryWriter) -> Move:
    """Build what `step` or `update` does."""
    memory = writer.memory
    moved = Moved(writer, writer.step_arguments)
    program, totals, states = moved.program, moved.totals, moved.states
    selected = _selected(writer, totals, moved.leaf)
    after = {v.name: dict(states[v.name]) for v in memory.variables}
    for assignment in memory.update:
        old = states[assignment.var][assignment.part]
        if selected is None or is_state(assignment.value, memory.name):
            node = writer.full(totals.low, totals.low.tensor(assignment.value), old)
        else:
            node = selected.put(writer, assignment.value, old)
        if node.op != "placeholder":
            wanted = state_name(memory, assignment.var)
            single = len(writer.parts(assignment.var)) == 1
            node.meta["name"] = wanted if single else f"{wanted}_{assignment.part}"
        after[assignment.var][assignment.part] = node
    results: list[object] = [writer.pack(v.name, after[v.name]) for v in memory.variables]
    results += [keep.pack(totals.left(keep)) for keep in keeps(memory)]
    program.finish(tuple(results))
    pairs = [(old, after[var][part]) for var in states for part, old in states[var].items()]
    return Move(program, results, _may_own(writer) and write_into_old(program, pairs))


def _may_own(writer: MemoryWriter) -> bool:
    """Say whether nothing holds a memory's states but a loop over its windows."""
    memory = writer.memory
    held = writer.has_start or memory.reset is not None or choice(memory) is not None
    bare = any(kind == "bare" and when != "initial" for kind, when, *_ in writer.reads)
    return memory.window > 1 and not (memory.is_task or held or bare)


def write_move(writer: MemoryWriter, out: Writer) -> None:
    """Write `step`, or `update` for a memory that moves with windows."""
    memory, move = writer.memory, writer.move
    kept = keeps(memory)
    tokens = f"{memory.window} tokens" if memory.window > 1 else "1 token"
    name, about = ("step", "Move by one token.") if not memory.stays else (
        "update", f"Move at the end of a window of {tokens}."
    )  # fmt: skip
    if memory.is_task:
        about = f"Move by the gradient of a window of {tokens}."
    words = _words(writer, writer.step_arguments, len(writer.asks))
    words += ["own: bool = False"] if move.own else []
    writer.method(out, name, words, writer.result_type(kept), about)
    if writer.step_kernel is not None:
        with out.indent():
            call_step(writer.step_kernel, writer, out)
    if writer.window_kernels is not None:
        write_launches(writer, writer.window_kernels, out)
    names = [*writer.states, *(keep.name for keep in kept)]
    writer.finish(out, move.program, move.results, names, finished=True)


def write_asks(writer: MemoryWriter, out: Writer) -> None:
    """Write `ask1`, ...: where an update asks for the gradient of the task once more."""
    for turn, points in enumerate(writer.asks):
        given = writer.ask_arguments[turn]
        about = "Say where the gradient is asked for once more."
        words = _words(writer, given, turn)
        writer.method(out, f"ask{turn + 1}", words, writer.state_type(), about)
        moved = Moved(writer, given)
        low, old = moved.totals.low, moved.states[""]
        values = {
            part: writer.full(low, low.tensor(point), old[part]) for part, point in points.items()
        }
        writer.finish(out, moved.program, [writer.pack("", values)], ["point"])


def _words(writer: MemoryWriter, given: dict[Expr, str], asked: int) -> list[str]:
    """The arguments of a method that moves a memory, when it has asked so many times."""
    memory = writer.memory
    words = [f"{name}: Tensor" for name in given.values()]
    if memory.is_task:
        names = ["grad", *(f"grad_{turn + 1}" for turn in range(asked))]
        words += [f"{name}: {writer.state_type()}" for name in names]
    words += writer.state_words()
    if writer.has_start:
        words.append(f"{writer.start_name}: {writer.state_type()}")
    words += [f"{keep.name}: {keep.type}" for keep in keeps(memory)]
    return words + flag_words(periods(memory))


class Moved:
    """What the methods that move a memory begin with: their arguments, and how leaves are found."""

    def __init__(self, writer: MemoryWriter, given: dict[Expr, str]):
        memory = writer.memory
        self.writer = writer
        self.program, self.inputs = program, inputs = writer.begin(given, 1)
        self.slopes = {-1: writer.state_input(program, "", "grad")} if memory.is_task else {}
        self.turns = {index: turn for turn, (index, _) in enumerate(asks(memory))}
        self.states = {
            v.name: writer.state_input(program, v.name, name)
            for v, name in zip(memory.variables, writer.states, strict=True)
        }
        if writer.has_start:
            self.start = writer.state_input(program, "", writer.start_name)
        kept = {keep.word: keep.take(program) for keep in keeps(memory)}
        self.totals = Totals(memory, program, kept)
        first = next(iter(self.states[""].values()))
        self.totals.begin(inputs, self.leaf, writer.like(program, inputs, [first]))
        low = self.totals.low
        low.rename = {
            v.name or "self": n for v, n in zip(memory.variables, writer.states, strict=True)
        }
        low.comments = writer.comments()

    def leaf(self, expr: Expr) -> fx.Node:
        """What a leaf stands for."""
        if expr in self.inputs:
            return self.inputs[expr]
        match expr.op:
            case "variable":
                return self.slopes[-1][expr.attr("part")]
            case "ask":
                turn = self.turns[expr.attr("index")]
                if turn not in self.slopes:
                    word = f"grad_{turn + 1}"
                    self.slopes[turn] = self.writer.state_input(self.program, "", word)
                return self.slopes[turn][expr.attr("part")]
            case _ if expr.attr("when") == "start":
                return self.start[expr.attr("part")]
        return self.states[expr.attr("var")][expr.attr("part")]


def _selected(
    writer: MemoryWriter, totals: Totals, leaf: Callable[[Expr], fx.Node]
) -> Selected | None:
    """Build for the parts alone that the update moves, where that is worth it."""
    memory, low = writer.memory, totals.low
    found = choice(memory)
    roots = [assignment.value for assignment in memory.update]
    if found is None or not found.sparse_update or any(
        node.op == "window" and node.attr("again") for node in postorder(roots)
    ):  # fmt: skip
        return None
    windowed = memory.window > 1
    weights = low.widen(low.as_number(low.tensor(found.condition if windowed else found.route)))
    assert isinstance(weights, fx.Node)
    chosen = choose(low, memory, found, weights, found.count)
    selected = Selected(low, memory, found, chosen, 1, own(memory, roots), leaf)
    selected.low.comments = low.comments
    selected.low.rename = {was: f"{name}_rows" for was, name in low.rename.items()}
    return selected


@dataclass
class Totals:
    """Values of `window` nodes in an update; `kept` are sums and recent values by slot."""

    memory: Memory
    program: Program
    kept: dict[str, dict[str, fx.Node]]
    after: dict[str, fx.Node] = field(default_factory=dict)
    sums: dict[Expr, Added] = field(default_factory=dict)
    low: Lowering = field(init=False)
    again: Lowering = field(init=False)

    def begin(
        self, inputs: dict[Expr, fx.Node], leaf: Callable[[Expr], fx.Node], like: fx.Node
    ) -> None:
        """Make the programs' builders: at the end of the window, and for all its tokens again."""
        from nlc.codegen.torch_memory import taken

        take = taken(inputs, leaf)
        if choice(self.memory) is None:
            self.sums = added([assignment.value for assignment in self.memory.update])

        def structured(low: Lowering, expr: Expr) -> Operand | None:
            match expr.op:
                case "window":
                    return self.value(low, expr)
                case "due":
                    return flag(self.program, int(expr.attr("period")[1]))
                case "add" | "sub" if low is self.low and self.joins(expr, inputs):
                    return add_product(low, expr, self.sums[expr])
                case _:
                    return take(low, expr)

        self.low = Lowering(self.program, 1, leaf, structured, like)
        self.again = Lowering(self.program, 2, leaf, structured, like)

    def joins(self, expr: Expr, inputs: dict[Expr, fx.Node]) -> bool:
        """Say whether a sum takes in its product: it is not there yet, nor is the product."""
        found = self.sums.get(expr)
        return found is not None and not any(e in inputs for e in (expr, *found.within))

    def value(self, low: Lowering, node: Expr) -> fx.Node:
        """The value of a `window` node: a total, or one token's value in a second pass."""
        (x,), how, slot = node.args, node.attr("how"), str(node.attr("slot"))
        _, length = node.attr("period")
        if how in ("each", "end"):
            return self.kept["recent"][slot]
        if low is self.again:
            return self.low.tensor(node)
        if node.attr("again"):
            return self.second_pass(x, how)
        if how == "last":
            return self.low.tensor(x)
        total = self.kept["sum"][slot]
        if length != self.memory.window:
            total = self.over_updates(x, slot, int(length))
        return self.mean(total, int(length)) if how == "mean" else total

    def second_pass(self, x: Expr, how: str) -> fx.Node:
        """Reduce over all tokens of the window, now that the other totals are there."""
        length = self.memory.window
        if how == "last":
            value = self.again.tensor(x)
            if batch_of(value) < 2:
                return value
            last = self.program.call(library.last_token, value)
            return note(last, x.shape, 1, value.meta["wide"])
        total = sum_of_tokens(self.again, x, length)
        return self.mean(total, length) if how == "mean" else total

    def mean(self, total: fx.Node, length: int) -> fx.Node:
        """A sum over tokens as their mean."""
        node = self.program.call(operator.truediv, total, float(length))
        return self.low.mark(node, total.meta["shape"], total)

    def over_updates(self, x: Expr, slot: str, length: int) -> fx.Node:
        """Add to a sum over updates, which begins anew where its period ends."""
        if slot not in self.after:
            old, value = self.low.align([self.kept["sum"][slot], self.low.tensor(x)])
            total = self.low.mark(self.program.call(operator.add, old, value), x.shape, old, value)
            total.meta.setdefault("name", f"{self.memory.name}_total")
            self.after[slot] = total
        return self.after[slot]

    def left(self, keep: Keep) -> dict[str, fx.Node]:
        """What is kept after the update: sums whose period has ended begin at 0."""
        found = {}
        for entry in keep.entries:
            old = self.kept[keep.word][entry.slot]
            if keep.word == "recent":
                found[entry.slot] = self.program.call(library.no_tokens, old)
            elif entry.period == self.memory.window:
                found[entry.slot] = self.program.call(library.nothing_like, old)
            else:
                total = self.after[entry.slot]
                nothing = self.program.call(torch.zeros_like, old)
                ends = flag(self.program, entry.period)
                left = self.program.call(pick, ends, nothing, total)
                found[entry.slot] = note(left, entry.shape, 1, wide=True, name=total.meta["name"])
        return found
