"""Softmax memories as classes: a cache of pairs, read by scaled dot product attention.

In: a `MemoryWriter` of a `kernel` memory. Out: the methods of its class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from nlc.codegen import library_attention
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.program import Program, note
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.shape import count, sizes

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter


def window_of(writer: MemoryWriter) -> int | None:
    """How many pairs the memory holds, or None for all."""
    window = writer.memory.map.option("window")
    return None if window is None else int(str(window)) * len(writer.memory.pairs)


def scale_of(writer: MemoryWriter) -> float:
    """What scores are multiplied with."""
    scale = writer.memory.map.option("scale")
    return float(str(scale)) if scale is not None else count(writer.memory.map.inputs[-1:]) ** -0.5


def write_attention(writer: MemoryWriter, out: Writer) -> None:
    """Write all methods."""
    memory, name = writer.memory, writer.states[0]
    cache = f"{name}: dict[str, Tensor]"
    lead = sizes(memory.lead)
    words = ["batch: int", "like: Tensor"]
    writer.method(out, "initial", words, "dict[str, Tensor]", "Give the empty cache.")
    with out.indent():
        for label, axes in (("key", memory.map.inputs), ("value", memory.map.outputs)):
            shape = ", ".join(map(str, ("batch", *lead, 0, *sizes(axes))))
            out.line(f"{label} = like.new_zeros({shape})")
        out.line('return {"key": key, "value": value}')
    out.blank()
    arguments = [f"{n}: Tensor" for n in writer.step_arguments.values()]
    writer.used.add("Pairs")
    about = "Add the pairs of a sequence."
    result = "tuple[Pairs, dict[str, Tensor]]"
    extra = ["position: int"] if memory.reset is not None else []
    writer.method(out, "forward", [*arguments, cache, *extra], result, about)
    _append(writer, out, 2)
    writer.method(out, "step", [*arguments, cache], "dict[str, Tensor]", "Add one token's pairs.")
    _append(writer, out, 1)
    for _, when, *_ in sorted(writer.reads):
        _read(writer, out, when)
    _read_step(writer, out)
    while out.lines and not out.lines[-1]:
        out.lines.pop()


def _append(writer: MemoryWriter, out: Writer, batch: int) -> None:
    from nlc.codegen.torch_memory import taken

    memory = writer.memory
    program, inputs = writer.begin(writer.step_arguments, batch)
    cache = program.input(writer.states[0])

    def leaf(expr: Expr) -> fx.Node:
        return inputs[expr]

    like = writer.like(program, inputs, [cache])
    low = Lowering(program, batch, leaf, taken(inputs, leaf), like)
    joined = []
    for place in (0, 1):
        values = [_pair(writer, low, pair[place]) for pair in memory.pairs]
        tokens = [program.call(library_attention.as_pairs, v, cache, batch == 2) for v in values]
        if len(tokens) == 1:
            joined.append(tokens[0])
        elif batch == 2:
            joined.append(program.call(library_attention.weave, *tokens))
        else:
            joined.append(program.call(torch.cat, tokens, -2))
        joined[-1].meta["name"] = ("keys", "values")[place]
    window = window_of(writer)
    more: dict[str, object] = {}
    if len(memory.pairs) > 1:
        more["per_token"] = len(memory.pairs)
    if batch == 2 and memory.reset is not None:
        more["reset"], more["position"] = memory.reset.count, program.input("position")
    node = program.call(library_attention.append_pairs, *joined, cache, window, **more)
    _, kept = program.unpack(node, ["pairs", writer.states[0]])
    program.finish(node if batch == 2 else kept)
    with out.indent():
        if batch == 2:
            node.meta.pop("results")
            for user in list(node.users):
                if user.op != "output":
                    program.graph.erase_node(user)
        printer = writer.body(out, program)
        printer.settle(node if batch == 2 else kept, out.room - 7)
        out.line(f"return {printer.operand(node if batch == 2 else kept)}")
    out.blank()


def _pair(writer: MemoryWriter, low: Lowering, expr: Expr) -> fx.Node:
    """A key or value [*lead, d], with all leading axes."""
    node = low.tensor(expr)
    if batch_of(node):
        for _ in range(len(writer.memory.lead) + 1 - rank_of(node)):
            node = low.unsqueeze(node, batch_of(node))
    return node


def _options(writer: MemoryWriter, program: Program) -> dict[str, object]:
    memory = writer.memory
    words: dict[str, object] = {}
    if len(memory.lead) != 1:
        words["lead"] = len(memory.lead)
    if memory.persistent:
        words["first"] = (program.attribute("key"), program.attribute("value"))
    return words


def _read(writer: MemoryWriter, out: Writer, when: str) -> None:
    name = "read" if when == "post" else "read_before"
    about = "after" if when == "post" else "before"
    text = f"Read {writer.memory.name}(q) at every token, {about} its pairs are added."
    writer.method(out, name, ["q: Tensor", "pairs: Pairs"], "Tensor", text)
    program = Program()
    words = _options(writer, program)
    if len(writer.memory.pairs) > 1:
        words["per_token"] = len(writer.memory.pairs)
    if window_of(writer) is not None:
        words["window"] = window_of(writer)
    if when == "prev":
        words["late"] = False
    if writer.memory.reset is not None:
        words["reset"] = writer.memory.reset.count
    q, pairs = program.input("q"), program.input("pairs")
    y = program.call(library_attention.attend, q, pairs, scale_of(writer), **words)
    writer.finish(out, program, [note(y, (), 2)])


def _read_step(writer: MemoryWriter, out: Writer) -> None:
    name = writer.states[0]
    words = ["q: Tensor", f"{name}: dict[str, Tensor]"]
    text = f"Read {writer.memory.name}(q) at one token."
    writer.method(out, "read_step", words, "Tensor", text)
    program = Program()
    q, cache = program.input("q"), program.input(name)
    options = _options(writer, program)
    y = program.call(library_attention.attend_step, q, cache, scale_of(writer), **options)
    writer.finish(out, program, [y])
