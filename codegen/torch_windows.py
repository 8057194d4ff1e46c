"""What a memory does with the tokens of a window, in which its state stays as it is.

In: a `MemoryWriter` of a memory that moves every N tokens. Out: the methods

    read(q, state)                 M(q) for all tokens at once
    collect(..., states, kept)     takes tokens into the sums of the window
    read_and_collect(q, ...)       both, where they have products in common

`update`, at the window's end, is in `torch_update`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.codegen import library
from nlc.codegen.apply import apply_parts
from nlc.codegen.kept import keeps
from nlc.codegen.library_opened import learned_matvecs
from nlc.codegen.lowering import Lowering, batch_of
from nlc.codegen.program import Operand, Program, note
from nlc.codegen.selected import Selected, choose, write_routed
from nlc.codegen.token_sums import sum_of_tokens
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.shared_reads import SharedRead
from nlc.ir.slots import choice, hanging, own
from nlc.ir.system import Memory
from nlc.ir.windows import tokens_of

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


def write_window(writer: MemoryWriter, out: Writer) -> None:
    """Write what runs inside a window."""
    # a shared read is of the state as it is, not of that at the start
    shared = writer.shared is not None
    if any(kind == "apply" and not (shared and when == "prev") for kind, when, *_ in writer.reads):
        _read(writer, out)
    if any(kind == "routed" for kind, *_ in writer.reads):
        write_routed(writer, out, 2)
    if tokens_of(writer.memory):
        _collect(writer, out, None)
    if writer.shared is not None:
        _collect(writer, out, writer.shared)


def _read(writer: MemoryWriter, out: Writer) -> None:
    memory, name = writer.memory, writer.states[0]
    words = ["q: Tensor", f"{name}: {writer.state_type()}"]
    about = f"Read {memory.name}(q) at all tokens of a window."
    writer.method(out, "read", words, "Tensor", about)
    program = Program()
    q = note(program.input("q"), (*memory.lead, *memory.map.inputs), 2)
    parts = writer.state_input(program, "", name)
    low = Lowering(program, 2, lambda expr: q, lambda low, expr: None, q)
    stream = Expr("stream", (), (("name", "q"),), q.meta["shape"])
    answer = _answer(low, memory, stream, parts)
    if memory.is_task:
        for node in program.graph.nodes:
            if node.target is library.matvecs:
                node.target = learned_matvecs
    writer.finish(out, program, [answer])


def _answer(low: Lowering, memory: Memory, query: Expr, parts: dict[str, fx.Node]) -> fx.Node:
    """Apply the memory, and give the result the query's type."""
    shape = (*memory.lead, *memory.map.outputs)
    attrs = (("lead", len(memory.lead)), ("map", memory.map))
    y = apply_parts(low, Expr("apply", (query,), attrs, shape), parts)
    dtype = low.program.call(getattr, low.tensor(query), "dtype")
    return note(low.program.method("to", y, dtype), shape, 2)


def own_states(writer: MemoryWriter) -> list[str]:
    """List the states that the tokens of a window read."""
    memory = writer.memory
    roots = [node.args[0] for node in tokens_of(memory)]
    read = {
        node.attr("var")
        for node in postorder(roots)
        if node.op == "state" and node.attr("memory") == memory.name
        and node.attr("when") != "initial"
    }  # fmt: skip
    return [v.name for v in memory.variables if v.name in read]


def shared_arguments(writer: MemoryWriter, shared: SharedRead) -> dict[Expr, str]:
    """Name what `read_and_collect` takes of each token."""
    names = writer.token_arguments
    return {shared.query: "q"} | {expr: names[expr] for expr in names if expr in shared.others}


@dataclass
class Collect:
    """How tokens are taken into a window, and what is kept of them.

    `begins` says that it can be told that a window begins with them, when nothing is kept yet.
    """

    program: Program
    results: list[object]
    begins: bool


def _collect(writer: MemoryWriter, out: Writer, shared: SharedRead | None) -> None:
    memory, kept = writer.memory, keeps(writer.memory)
    read, given = own_states(writer), writer.token_arguments
    if shared is not None:
        given = shared_arguments(writer, shared)
    names = dict(zip((v.name for v in memory.variables), writer.states, strict=True))
    words = [f"{name}: Tensor" for name in given.values()]
    words += [] if counted(writer) else ["tokens: int"]
    words += [f"{names[var]}: {writer.state_type(var)}" for var in read]
    words += [f"{keep.name}: {keep.type}" for keep in kept]
    kinds = [*(["Tensor"] if shared is not None else []), *(keep.type for keep in kept)]
    result = kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"
    name, about = "collect", f"Take tokens into the window of {memory.window}."
    if shared is not None:
        name = "read_and_collect"
        about = (
            f"Read {memory.name}(q) at tokens that are taken into the window of {memory.window}."
        )
    built = build_collect(writer, shared)
    words += ["begins: bool = False"] if built.begins else []
    writer.method(out, name, words, result, about)
    called = [*([""] if shared is not None else []), *(keep.name for keep in kept)]
    writer.finish(out, built.program, built.results, called)


def build_collect(writer: MemoryWriter, shared: SharedRead | None) -> Collect:
    """Build what takes tokens into a window, and with a `shared` read, what that gives."""
    memory, kept = writer.memory, keeps(writer.memory)
    read, given = own_states(writer), writer.token_arguments
    if shared is not None:
        given = shared_arguments(writer, shared)
    names = dict(zip((v.name for v in memory.variables), writer.states, strict=True))
    program, inputs = writer.begin(given, 2)
    states = {var: writer.state_input(program, var, names[var]) for var in read}
    values = {keep.word: keep.take(program) for keep in kept}

    def leaf(expr: Expr) -> fx.Node:
        return inputs[expr] if expr in inputs else states[expr.attr("var")][expr.attr("part")]

    from nlc.codegen.torch_memory import taken

    first = next(iter(next(iter(values.values())).values()))
    like = writer.like(program, inputs, [first])
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    count = tokens_in(writer, program, inputs)
    selected = _selected(writer, low, leaf)
    for node in tokens_of(memory):
        slot, how = str(node.attr("slot")), node.attr("how")
        if how in ("each", "end"):
            keep_one = library.with_tokens if how == "each" else library.newest
            _keep(low, node, values["recent"], slot, keep_one)
        else:
            joins = choice(memory) is None
            _add(low, node, values["sum"], slot, count, selected, joins)
    for keep in kept:
        for slot, value in values[keep.word].items():
            if value.op != "placeholder" and "name" not in value.meta:
                value.meta["name"] = keep.name if len(keep.entries) == 1 else f"{keep.name}_{slot}"
    answers = [] if shared is None else [_answer(low, memory, shared.query, states[""])]
    results: list[object] = [*answers, *(keep.pack(values[keep.word]) for keep in kept)]
    begins = any(node.target is library.add_outer_sum for node in program.graph.nodes)
    return Collect(program, results, begins)


def counted(writer: MemoryWriter) -> bool:
    """Say whether `collect` sees how many tokens there are; else it is told."""
    return any(writer.batch_of(expr) == 2 for expr in writer.token_arguments)


def tokens_in(writer: MemoryWriter, program: Program, inputs: dict[Expr, fx.Node]) -> fx.Node:
    """Give the number of tokens: of the first argument that has one for each."""
    for expr, node in inputs.items():
        if writer.batch_of(expr) == 2:
            shape = program.call(getattr, node, "shape")
            return program.call(operator.getitem, shape, 1)
    return program.input("tokens")


def _selected(
    writer: MemoryWriter, low: Lowering, leaf: Callable[[Expr], fx.Node]
) -> Selected | None:
    """Build for the parts alone that tokens select, where that is worth it."""
    memory = writer.memory
    found = choice(memory)
    roots = [node.args[0] for node in tokens_of(memory)]
    if found is None or not found.sparse or not own(memory, roots):
        return None
    weights = low.tensor(found.route)
    chosen = choose(low, memory, found, weights, found.selected)
    weighed = hanging(roots, lambda node: node is found.route)
    given = writer.token_arguments
    return Selected(low, memory, found, chosen, 2, own(memory, roots), leaf, weighed, given)


def _add(
    low: Lowering,
    node: Expr,
    sums: dict[str, fx.Node],
    slot: str,
    count: fx.Node,
    selected: Selected | None,
    joins: bool,
) -> None:
    """Add the tokens to a sum; an outer product `joins` it by its product of matrices."""
    old, new = low.align([sums[slot], sum_of_tokens(low, node.args[0], count, selected)])
    factor, product = _factor(new)
    if joins and isinstance(product, fx.Node) and product.target is library.outer_sum:
        words = [] if factor == 1 else [factor]
        begins = {"begins": low.program.input("begins")}
        total = low.program.call(library.add_outer_sum, old, *product.args, *words, **begins)
    elif isinstance(new, fx.Node) and new.target is operator.neg:
        total = low.program.call(operator.sub, old, new.args[0])
    else:
        total = low.program.call(operator.add, old, new)
    sums[slot] = note(total, node.shape, 1, wide=True)


def _factor(value: Operand) -> tuple[float, Operand]:
    """Split numbers and signs off a product."""
    factor = 1.0
    while isinstance(value, fx.Node):
        if value.target is operator.neg:
            factor, value = -factor, value.args[0]
        elif value.target is operator.mul and isinstance(value.args[0], float):
            factor, value = factor * value.args[0], value.args[1]
        else:
            break
    return factor, value


def _keep(
    low: Lowering,
    node: Expr,
    recent: dict[str, fx.Node],
    slot: str,
    function: Callable[..., object],
) -> None:
    """Keep a value of every token, or of the last one, until the window ends."""
    value = low.widen(low.as_number(low.tensor(node.args[0])))
    for _ in range(2 - batch_of(value)):
        value = low.unsqueeze(value, 0)
    joined = low.program.call(function, recent[slot], value)
    recent[slot] = note(joined, node.shape, 2, wide=True)
