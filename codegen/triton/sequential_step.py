"""The kernel of a memory's step, the operation of torch that starts it, and what calls it.

In: the writer of a memory's class. Out: a `StepPlan`, or why there is none; its text for
`kernels.py`, with its line in the list of kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlc.codegen.kept import keeps
from nlc.codegen.names import Names, identifier
from nlc.codegen.triton.sequential import (
    RESERVED,
    Sizes,
    TokenPrinter,
    Unprintable,
    Value,
    block,
    core,
)
from nlc.codegen.triton.table import ARCHITECTURES
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import postorder
from nlc.ir.kernel import Emitted
from nlc.ir.slots import choice
from nlc.ir.windows import periods

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter

# entries of all states that the registers of one program hold
LARGEST = 1 << 15
ROLE = "step"


@dataclass(frozen=True)
class Argument:
    """What a step takes: its word, its axes in one copy, whether it has rows and copies."""

    word: str
    shape: Sizes
    rows: bool
    copies: bool
    is_state: bool = False


@dataclass(frozen=True)
class StepPlan:
    """A kernel: `lines` are its body, `channels` the numbers of axes' entries it needs."""

    name: str
    arguments: tuple[Argument, ...]
    states: tuple[tuple[str, Sizes], ...]
    lead: int
    text: str
    warps: int


def plan_step(writer: MemoryWriter, name: str) -> StepPlan | str:
    """Plan the kernel of a memory's step; a text says why it has none."""
    reason = why_not(writer)
    if reason:
        return reason
    try:
        return _plan(writer, name)
    except Unprintable as why:
        return str(why)


def why_not(writer: MemoryWriter) -> str:
    """Say what keeps an update from being a kernel, or nothing."""
    memory = writer.memory
    if writer.is_kernel:
        return "it stores what it is given"
    if memory.is_task or memory.stays:
        return "it moves with windows"
    if keeps(memory) or periods(memory) or choice(memory):
        return "its update keeps more than its states"
    if any(len(v.parts) > 1 for v in memory.variables):
        return "it has several parts"
    return ""


def _plan(writer: MemoryWriter, name: str) -> StepPlan:
    memory = writer.memory
    lead = memory.lead
    names = Names(RESERVED | {"tl"})
    out = Writer()
    out.depth = 1
    printer = TokenPrinter(lead, out, writer.comments(), names)
    taken: list[Argument] = []
    for expr, word in writer.step_arguments.items():
        shape = core(expr.shape, lead)
        copies = bool(lead) and expr.shape[: len(lead)] == lead
        rows = writer.batch_of(expr) > 0
        own = names.fresh(word)
        taken.append(Argument(own, shape, rows, copies))
        printer.known[expr] = Value(own, shape)
    states: list[tuple[str, Sizes]] = []
    for variable, word in zip(memory.variables, writer.states, strict=True):
        (part,) = variable.parts
        if len(part.shape) > 2:
            raise Unprintable("a state has more than two axes")
        own = names.fresh(word)
        states.append((own, tuple(axis.size for axis in part.shape)))
    held = [*states, states[0]] if writer.has_start else states
    total = sum(math.prod(map(block, shape)) for _, shape in held)
    if total > LARGEST:
        raise Unprintable(f"its states have more than {LARGEST} entries")
    before = {("prev", v.name): s for v, s in zip(memory.variables, states, strict=True)}
    if writer.has_start:
        own = names.fresh(writer.start_name)
        before["start", ""] = (own, states[0][1])
        taken.append(Argument(own, states[0][1], True, True, is_state=True))
    roots = [assignment.value for assignment in memory.update]
    for node in postorder(roots, {id(e) for e in writer.step_arguments}):
        if node.op == "state" and node not in printer.known:
            place = (node.attr("when"), node.attr("var"))
            if node.attr("memory") != memory.name or place not in before:
                raise Unprintable("its update reads another state")
            printer.known[node] = Value(*before[place])
    values = printer.run(roots)
    body = out.lines
    head = Writer()
    head.depth = 1
    stores: list[tuple[str, Sizes, str]] = []
    given = {a.var: v for a, v in zip(memory.update, values, strict=True)}
    tail = Writer()
    tail.depth = 1
    for variable, (own, shape) in zip(memory.variables, states, strict=True):
        value = given.get(variable.name, Value(own, shape))
        if len(value.shape) < len(shape):
            more = len(shape) - len(value.shape)
            index = ["None"] * more + [":"] * len(value.shape)
            value = printer.indexed(value, index, (*(1,) * more, *value.shape))
        stores.append((own, shape, value.text))
    for argument in taken:
        _load(printer, head, argument.word, argument.shape, argument.is_state)
    for own, shape in states:
        _load(printer, head, own, shape, True)
    for own, shape, text in stores:
        _store(printer, tail, own, shape, text)
    channels = Writer()
    channels.depth = 1
    for size, word in printer.channels.items():
        channels.line(f"{word} = tl.arange(0, {block(size)})  # of {size}")
    lines = [*channels.lines, *head.lines, *body, *tail.lines]
    warps = 16 if total > 1 << 14 else 8 if total > 1 << 13 else 4 if total > 1 << 10 else 1
    text = "\n".join(lines) + "\n"
    return StepPlan(name, tuple(taken), tuple(states), len(lead), text, warps)


def _place(printer: TokenPrinter, shape: Sizes) -> tuple[str, str]:
    """Where an entry of a copy stands, and which are no padding."""
    match shape:
        case ():
            return "copy", ""
        case (n,):
            c = printer.along(n)
            return f"copy * {n} + {c}", f"{c} < {n}" if block(n) != n else ""
        case (m, n):
            r, c = printer.along(m), printer.along(n)
            rows, columns = f"{r}[:, None]", f"{c}[None, :]"
            masks = [f"({rows} < {m})"] if block(m) != m else []
            masks += [f"({columns} < {n})"] if block(n) != n else []
            mask = " & ".join(masks)
            mask = mask[1:-1] if len(masks) == 1 else mask
            return f"copy * {m * n} + {rows} * {n} + {columns}", mask
    raise AssertionError(shape)


def _load(printer: TokenPrinter, out: Writer, word: str, shape: Sizes, wide: bool) -> None:
    at, mask = _place(printer, shape)
    words = [f"{word}_ptr + {at}", *([mask, "0.0"] if mask else [])]
    line = f"{word} = tl.load({', '.join(words)}).to(tl.float32)"
    if wide or len(line) > out.room:
        out.call(f"{word} = tl.load(", words)
        if not wide:
            out.line(f"{word} = {word}.to(tl.float32)")
        return
    out.line(line)


def _store(printer: TokenPrinter, out: Writer, word: str, shape: Sizes, text: str) -> None:
    at, mask = _place(printer, shape)
    out.call("tl.store(", [f"{word}_after_ptr + {at}", text, *([mask] if mask else [])])


def write_step(plan: StepPlan, about: Sequence[str], digest: str, made: list[Emitted]) -> str:
    """Write the kernel of a step and what starts it."""
    out = Writer()
    words = [a.word for a in plan.arguments]
    states = [word for word, _ in plan.states]
    after = [f"{word}_after" for word in states]
    kernel, table = f"{plan.name}_step_kernel", f"{plan.name.upper()}_STEP_BLOCKS"
    out.line(f"{table} = {{")
    for machine in (*ARCHITECTURES, "interpreter"):
        out.line(f'    "{machine}": Blocks(1, 1, {plan.warps}, {plan.warps}, 1),')
    out.line("}")
    out.blank(2)
    out.line("@triton.jit")
    out.call(f"def {kernel}(", [f"{w}_ptr" for w in (*words, *states, *after)], "):")
    with out.indent():
        out.docstring(["Move one copy by one token.", *about])
        out.line("copy = tl.program_id(0).to(tl.int64)")
    out.lines += plan.text.rstrip("\n").split("\n")
    out.blank(2)
    kinds = ", ".join(["Tensor"] * len(states))
    kind = f"tuple[{kinds}]" if len(states) > 1 else "Tensor"
    out.line(f'@torch.library.custom_op("{digest}::{plan.name}_step_op", mutates_args=())')
    typed = [f"{word}: Tensor" for word in (*words, *states)]
    for text in split_call(f"def {plan.name}_step_op(", typed, f") -> {kind}:", out.room):
        out.line(text)
    with out.indent():
        out.docstring(["Give the states after one token, all copies in a row."])
        for word in states:
            out.line(f"{word}_after = torch.empty_like({word})")
        out.line(f"blocks = {table}[architecture({states[0]}.device)]")
        grid = f"{kernel}[({states[0]}.shape[0],)]("
        out.call(grid, [*words, *states, *after, "num_warps=blocks.warps"])
        out.line(f"return {', '.join(after)}")
    out.blank(2)
    out.line(f"@{plan.name}_step_op.register_fake")
    out.call("def _(", [*words, *states], "):")
    with out.indent():
        out.line(f"return {', '.join(f'torch.empty_like({word})' for word in states)}")
    out.blank(2)
    for text in split_call(f"def {plan.name}_step(", typed, f") -> {kind}:", out.room):
        out.line(text)
    with out.indent():
        out.docstring(["Move by one token: the new states, without gradients."])
        first, shape = plan.states[0]
        rank = len(shape)
        front = f"{first}.shape[:-{rank}]" if rank else f"{first}.shape"
        out.line(f"front = {front}")
        given = [
            f"in_rows({a.word}, front, {len(a.shape)}, {a.rows}, {a.copies})"
            for a in plan.arguments
        ]
        given += [
            f"in_rows({word}, front, {len(shape)}, True, True)" for word, shape in plan.states
        ]
        single = len(states) == 1
        out.call(f"{first + '_after' if single else 'after'} = {plan.name}_step_op(", given)
        if single:
            out.line(f"return {first}_after.reshape({first}.shape)")
        else:
            texts = [f"after[{i}].reshape({w}.shape)" for i, w in enumerate(states)]
            line = f"return {', '.join(texts)}"
            if len(line) <= out.room:
                out.line(line)
            else:
                for text in ("return (", *(f"    {text}," for text in texts), ")"):
                    out.line(text)
    narrow = frozenset(a.word for a in plan.arguments if not a.is_state)
    sizes = (*plan.states[0][1], 1, 1)
    made.append(Emitted(kernel, plan.name, ROLE, table, narrow, False, sizes[1], sizes[0]))
    return out.text()


def call_step(plan: StepPlan, writer: MemoryWriter, out: Writer) -> None:
    """Write `if kernels.steps(M): return kernels.NAME_step(...)`."""
    out.line(f"if kernels.steps({writer.states[0]}):")
    with out.indent():
        starts = [writer.start_name] if writer.has_start else []
        words = [*writer.step_arguments.values(), *starts, *writer.states]
        out.call(f"return kernels.{plan.name}_step(", words)


def step_name(block_name: str, memory: str) -> str:
    """What begins the names of a memory's kernels."""
    return identifier(f"{block_name}_{memory}".lower())
