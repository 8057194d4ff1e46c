"""The function that gives what a chunk's tokens write, and what of it is made before the chunks.

In: a `MemoryWriter` whose update reads the state before its chunk. Out: text, the streams that the
function takes as calls see them, and names that stand before it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nlc.codegen import library_chunks
from nlc.codegen.before_chunks import Forms, before_chunks
from nlc.codegen.lowering import Lowering, batch_of, is_wide
from nlc.codegen.one_copy import leads, of_writes, one_copy
from nlc.codegen.printer import default_name
from nlc.codegen.program import Program, note
from nlc.codegen.tile_vectors import Vectors
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Affine, still_parts
from nlc.ir.shape import Shape, sizes

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter

# names that `forward` has besides its arguments
LOCALS = ("writes", "read", "finish", "moves", "path", "answers")


@dataclass(frozen=True)
class Written:
    """What is written: forms over `leaves`, which stand for arguments and for what is `made`.

    The parts that stay as they are, `still`, are arguments, too. `alone` says that the forms are
    those of one copy, without leading axes, and so are the leaves.
    """

    forms: Forms
    leaves: dict[Expr, Expr]
    made: dict[Expr, Expr]
    still: tuple[Expr, ...]
    alone: bool

    def value(self, leaf: Expr) -> Expr:
        """What a leaf is, over the arguments."""
        return self.made.get(leaf, leaf)


class Known(NamedTuple):
    """How a leaf is called, its axes for batch and time, and whether it is wide."""

    name: str
    batch: int
    wide: bool = False


def moving(writer: MemoryWriter) -> list[tuple[str, Affine]]:
    """List the forms of the parts that move; at least one does."""
    still = still_parts(writer.forms)
    return [(part, form) for part, form in writer.forms if part not in still]


def lead_of(writer: MemoryWriter) -> Shape:
    """The leading axes that stand beside tokens while the memory runs."""
    return () if writer.written.alone else writer.memory.lead


def written(writer: MemoryWriter) -> Written:
    """Find what is made before the chunks, and what one copy writes where it can be said."""
    forms, still = moving(writer), list[Expr]()
    if writer.in_pieces:
        # all of a call is one chunk
        return Written(forms, _same(writer, forms), {}, (), alone=False)
    if writer.memory.reset is None:
        parts = still_parts(writer.forms)
        nodes = postorder([e for _, form in forms for e in of_writes(form)])
        still = [e for e in nodes if e.op == "state" and e.attr("part") in parts]
        still = [e for e in still if e not in writer.run_arguments]
    forms, made = before_chunks(forms, [*writer.run_arguments, *still])
    needed = set(postorder([e for _, form in forms for e in of_writes(form)]))
    given = [e for e in (*writer.run_arguments, *still, *made) if e in needed]
    one = one_copy(forms, given, writer.memory.lead) if writer.memory.lead else None
    if one is None:
        return Written(forms, {e: e for e in given}, made, tuple(still), alone=False)
    return Written(one.forms, one.leaves, made, tuple(still), alone=True)


def _same(writer: MemoryWriter, forms: Forms) -> dict[Expr, Expr]:
    """The arguments that writes are made of, each for itself."""
    needed = set(postorder([e for _, form in forms for e in of_writes(form)]))
    return {e: e for e in writer.run_arguments if e in needed}


def write_writes(writer: MemoryWriter, out: Writer) -> tuple[list[str], list[str]]:
    """Write the function; return its streams, and the names that stand before it."""
    names = _made_ahead(writer, out)
    known = {e: names.get(e) or _argument(writer, e) for e in writer.written.leaves}
    streams = [e for e in known if _moves(writer, e)]
    # a chunk must have its tokens counted, even where what it writes does not hang on them
    streams = streams or [e for e in writer.run_arguments if writer.varies(e)][:1]
    # what is lowered to one value, as an expression and with a name of its own, is one stream
    heads: dict[str, Expr] = {}
    for e in streams:
        heads.setdefault((known.get(e) or _argument(writer, e)).name, e)
    out.blank()
    out.call("def writes(", [*heads, "start"], "):")
    with out.indent():
        out.docstring(["What the tokens of a chunk write, from the state before it."])
        _body(writer, out, known)
    out.blank()
    calls = [_stream(writer, e, name) for name, e in heads.items()]
    return calls, [own.name for own in names.values()]


def _argument(writer: MemoryWriter, expr: Expr) -> Known:
    """An argument of `forward` as the function takes it."""
    return Known(writer.run_arguments[expr], min(2, writer.batch_of(expr)))


def _made_ahead(writer: MemoryWriter, out: Writer) -> dict[Expr, Known]:
    """Write what is made before the chunks, and lay out what no token changes for copies' rows."""
    from nlc.codegen.torch_memory import taken

    found, lead = writer.written, writer.memory.lead
    fixed = [e for e in found.leaves if not _moves(writer, e) and (found.alone or e.op == "state")]
    values = {leaf: found.value(leaf) for leaf in (*found.made, *fixed)}
    if not values:
        return {}
    varying = next(e for e in writer.run_arguments if writer.varies(e))
    needed = [*postorder(values.values()), varying]
    arguments = {e: n for e, n in writer.run_arguments.items() if e in needed}
    program, inputs = writer.begin(arguments, 2)
    like = writer.like(program, inputs, [])
    for e in needed:
        if e in found.still:
            part = program.call(operator.getitem, program.input(writer.start_name), e.attr("part"))
            inputs[e] = note(part, e.shape, 1, wide=True)
    # kept in the precision in which it was made among states
    leaf = inputs.__getitem__
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like, lift=True)
    nodes = {}
    for expr, value in values.items():
        node = nodes[expr] = low.tensor(value)
        if expr in fixed and found.alone and leads(expr.shape, lead):
            for place in range(batch_of(node), 2):
                node = low.unsqueeze(node, place)
            shape = program.call(getattr, inputs[varying], "shape")
            words = program.call(operator.getitem, shape, 0), sizes(lead)
            nodes[expr] = note(
                program.call(library_chunks.as_rows, node, *words), value.shape, 2, is_wide(node)
            )
        word = expr.attr("part") if expr.op == "state" else default_name(nodes[expr])
        nodes[expr].meta.setdefault("name", word)
    program.finish(tuple(nodes.values()))
    others = [*LOCALS, *writer.run_arguments.values(), *writer.states, writer.start_name]
    others += ["position", *(word.split(":")[0] for word in writer.restart_words())]
    out.blank()
    printer = writer.body(out, program, {name: name for name in others})
    return {e: Known(printer.bound[n], batch_of(n), is_wide(n)) for e, n in nodes.items()}


def _moves(writer: MemoryWriter, leaf: Expr) -> bool:
    """Say whether a leaf has a value for each token."""
    nodes = postorder([writer.written.value(leaf)])
    return any(e in writer.run_arguments and writer.varies(e) for e in nodes)


def _stream(writer: MemoryWriter, expr: Expr, name: str) -> str:
    """A stream as chunks take it, once for each copy where these run by themselves."""
    lead = writer.memory.lead
    if not writer.written.alone or leads(expr.shape, lead):
        return name
    writer.used.add("for_copies")
    return f"for_copies({name}, {sizes(lead)})"


def _body(writer: MemoryWriter, out: Writer, known: dict[Expr, Known]) -> None:
    from nlc.codegen.torch_memory import taken, write_dict

    found, lead, memory = writer.written, lead_of(writer), writer.memory
    program = Program()
    inputs, named = dict[Expr, fx.Node](), dict[str, fx.Node]()
    for e, own in known.items():
        new = found.leaves[e]
        if own.name not in named:
            named[own.name] = note(program.input(own.name), new.shape, own.batch, own.wide)
        inputs[new] = named[own.name]
    before = program.input("start")
    start = {
        part.name: note(
            program.call(operator.getitem, before, part.name), (*lead, *part.shape), 1, wide=True
        )
        for part in memory.map.parts
    }

    def leaf(expr: Expr) -> fx.Node:
        return inputs[expr] if expr in inputs else start[expr.attr("part")]

    like = writer.like(program, inputs, list(start.values()))
    low = Lowering(program, 2, leaf, taken(inputs, leaf), like)
    writes: dict[str, list[fx.Node]] = {}
    for part, form in found.forms:
        rank = next(len(p.shape) for p in memory.map.parts if p.name == part)
        writes[part] = Vectors(low, len(lead), rank).writes(form, True)
    program.finish(tuple(x for made in writes.values() for x in made))
    write_dict(out, writer.body(out, program), "return ", writes)
