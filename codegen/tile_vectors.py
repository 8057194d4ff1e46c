"""The normal form of one part as a program: its writes, its gates, and the equations above them.

In: an `Affine` form and a `Lowering` over a sequence. Out: calls of `Write`, the gates as
`library_tiles` takes them, and the comments that say what they are.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from nlc.codegen import library, library_tiles
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.program import Operand, note
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.met import factors, met_at_start
from nlc.ir.normal_form import Affine, Gate, Write
from nlc.ir.schedule import Keeping
from nlc.ir.shape import Shape


def equations(out: Writer, form: Affine, states: list[str]) -> None:
    """Say what the writes and the gates below compute; `states` are the names of the states."""
    names = [f"{name}_{{t-1}}" for name in states]
    for r, write in enumerate(form.writes):
        terms = [f"{n} p" for n, p in zip(names, write.reads, strict=True) if p is not None]
        terms += [f"c {write_name(form, s)}" for s, _ in write.earlier]
        terms += ["u"] if write.offset is not None else []
        out.comment(f"{write_name(form, r)} = {' + '.join(terms) or '0'}")
    for j, name in enumerate(states):
        gates = [(i, row[j]) for i, row in enumerate(form.decay) if row[j] is not None]
        terms = []
        for i, gate in gates:
            assert gate is not None
            unit = gate.value.op == "const" and gate.value.attr("value") == 1.0
            terms.append(names[i] if unit else f"{names[i]} {_gate_word(gate, len(names), i, j)}")
        for r, write in enumerate(form.writes):
            if write.targets[j] is not None:
                terms.append(f"{write_name(form, r)} b^T")
        turned = " (all transposed)" if form.transposed else ""
        out.comment(f"{name}_t = {' + '.join(terms) or '0'}{turned}")


def write_name(form: Affine, number: int) -> str:
    """How a write is called: `e`, or `e1`, `e2`, ... where there are several."""
    return f"e{number + 1}" if len(form.writes) > 1 else "e"


def _gate_word(gate: Gate, count: int, i: int, j: int) -> str:
    word = "g" if count == 1 else f"g{i + 1}{j + 1}"
    return word if gate.kind == "scalar" else f"diag({word})"


@dataclass
class Vectors:
    """Builds the vectors of writes, each once."""

    low: Lowering
    lead: int
    rank: int
    done: dict[tuple[Expr, bool], fx.Node] = field(default_factory=dict)

    def writes(self, form: Affine, by_chunks: bool = False) -> list[fx.Node]:
        """All writes of a form; a form without one writes zeros.

        By chunks, with what they read of the state before the chunk, where that is known.
        """
        if not form.writes:
            return [
                self.low.program.call(library_tiles.Write, [], self.zero(), [(self.zero(), (0,))])
            ]
        met = met_at_start(form) if by_chunks else {}
        return [self.write(w, write_name(form, r), met.get(r)) for r, w in enumerate(form.writes)]

    def asked(self, write: Write) -> tuple[list[Operand], fx.Node | None]:
        """What a write reads the states with, and what is added to that."""
        reads: list[Operand] = [
            (self.vector(p, self.rank >= 1, "p"), j)
            for j, p in enumerate(write.reads)
            if p is not None
        ]
        offset = None
        if write.offset is not None:
            offset = self.vector(write.offset, self.rank == 2, "u")
        return reads, offset

    def write(self, write: Write, name: str, product: Expr | None = None) -> fx.Node:
        """A call of `Write`; `product` is the state before the chunk times what reads it."""
        reads, offset = self.asked(write)
        into: dict[Expr, list[int]] = {}
        for j, b in enumerate(write.targets):
            if b is not None:
                into.setdefault(b, []).append(j)
        targets = [(self.vector(b, self.rank >= 1, "b"), tuple(js)) for b, js in into.items()]
        if not targets:
            # other writes see it, no state keeps it
            targets = [(self.zero(), (0,))]
        seen = [(_lifted(self.low, self.low.tensor(c), self.lead), s) for s, c in write.earlier]
        words: list[Operand] = [reads, offset, targets, *([tuple(seen)] if seen else [])]
        also = {} if product is None else {"met": self.met(write, product)}
        node = self.low.program.call(library_tiles.Write, *words, **also)
        node.meta["name"] = name
        return node

    def met(self, write: Write, product: Expr) -> fx.Node:
        """What a write reads of the state before the chunk."""
        (asked,) = write.reads
        assert asked is not None
        sign, numbers, _ = factors(asked)
        node = self.low.tensor(product)
        if numbers:
            a, b = self.low.align([_number(self.low, sign, numbers), node])
            node = self.low.mark(self.low.program.call(operator.mul, a, b), product.shape, a, b)
        else:
            node = _signed(self.low, sign, node)
        node = _lifted(self.low, node, self.lead + 1)
        if node.op != "placeholder":
            node.meta.setdefault("name", "met")
        return node

    def zero(self) -> fx.Node:
        """A vector of zeros, of one entry."""
        nothing = self.low.program.call(library.number, 0.0, self.low.like)
        return self.low.unsqueeze(note(nothing, (), 0, wide=True), 0)

    def vector(self, expr: Expr, has_axis: bool, name: str) -> fx.Node:
        """A coefficient [*lead, d], with an axis of size 1 where it is one number."""
        key = (expr, has_axis)
        if key not in self.done:
            node = _vector(self.low, expr, self.lead, has_axis, name)
            if rank_of(node) == 0 and batch_of(node) == 0:
                node = self.low.unsqueeze(node, 0)
            self.done[key] = node
        return self.done[key]


def _vector(low: Lowering, expr: Expr, lead: int, has_axis: bool, name: str) -> fx.Node:
    node = _scaled(low, expr) if has_axis else low.tensor(expr)
    rank = rank_of(node)
    if not has_axis and rank <= lead and (rank or batch_of(node)):
        node = low.unsqueeze(node, batch_of(node) + rank)
    node = _lifted(low, node, lead + 1)
    if node.op != "placeholder":
        node.meta.setdefault("name", name)
    return node


def leaf_value(low: Lowering, expr: Expr, lead: int, has_axis: bool) -> fx.Node:
    """What a kernel loads, its axes in front of it: [*lead, d], or [*lead]."""
    if has_axis:
        return _vector(low, expr, lead, True, "x")
    return _lifted(low, low.tensor(expr), lead)


def _scaled(low: Lowering, expr: Expr) -> fx.Node:
    """A vector times numbers, the numbers multiplied first: one product over the vector.

    What a matrix makes of a vector is scaled by scaling that vector, where it is no longer. So what
    a layer writes is what the next one writes, taken back through its matrix.
    """
    sign, numbers, rest = factors(expr)
    inner = _scaled_before(low, rest)
    if not numbers or (inner is None and (len(rest) != 1 or (sign == 1.0 and len(numbers) < 2))):
        return low.tensor(expr)
    return _times(low, sign, numbers, rest, expr.shape)


def _times(
    low: Lowering, sign: float, numbers: list[Expr], rest: list[Expr], shape: Shape
) -> fx.Node:
    """Build `sign * numbers * rest`."""
    inner = _scaled_before(low, rest)
    if inner is None:
        nodes = [_number(low, sign, numbers), *map(low.tensor, rest)]
    else:
        from nlc.codegen.spelling import SPELLING

        matrix, vector = inner.args
        more_sign, more_numbers, others = factors(vector)
        scaled = _times(low, sign * more_sign, [*numbers, *more_numbers], others, vector.shape)
        nodes = [SPELLING["matvec"](low, inner, [low.value(matrix), scaled])]
        nodes += [low.tensor(e) for e in rest if e is not inner]
    found: fx.Node = nodes[0]
    for node in nodes[1:]:
        a, b = low.align([found, node])
        found = low.mark(low.program.call(operator.mul, a, b), shape, a, b)
    return found


def _scaled_before(low: Lowering, rest: list[Expr]) -> Expr | None:
    """The product with a matrix, among factors, whose vector is scaled in the place of all."""
    for e in rest:
        if e.op == "matvec" and low.structured(low, e) is None:
            vector = e.args[1]
            inner = _scaled_before(low, factors(vector)[2])
            last = vector if inner is None else inner.args[1]
            if vector.shape[:-1] == e.shape[:-1] and last.shape[-1].size <= e.shape[-1].size:
                return e
    return None


def _number(low: Lowering, sign: float, numbers: list[Expr]) -> fx.Node:
    """The product of numbers, with an axis for the vector."""
    program, scale = low.program, low.tensor(numbers[0])
    for number in numbers[1:]:
        a, b = low.align([scale, low.tensor(number)])
        shape = max(a.meta["shape"], b.meta["shape"], key=len)
        scale = low.mark(program.call(operator.mul, a, b), shape, a, b)
    scale = _signed(low, sign, scale)
    return low.unsqueeze(scale, batch_of(scale) + rank_of(scale))


def _signed(low: Lowering, sign: float, scale: fx.Node) -> fx.Node:
    """Multiply by a number."""
    if sign == 1.0:
        return scale
    minus = low.program.call(operator.neg, scale)
    node = minus if sign == -1.0 else low.program.call(operator.mul, sign, scale)
    return low.mark(node, scale.meta["shape"], scale)


def _lifted(low: Lowering, node: fx.Node, rank: int) -> fx.Node:
    if batch_of(node):
        if batch_of(node) == 1:
            node = low.unsqueeze(node, 1)
        for _ in range(rank - rank_of(node)):
            node = low.unsqueeze(node, batch_of(node))
    return node


def gate_value(low: Lowering, kept: Keeping | None, gate: Gate | None) -> Operand:
    """A gate as tiles of that kind take it, or a scan: a number, a tensor, or None for 0."""
    if gate is None:
        return None
    value = low.value(gate.value)
    if isinstance(value, float | int):
        return float(value)
    node = low.tensor(gate.value)
    node = _lifted(low, node, rank_of(node))
    channels = kept is None or kept.gates == "CoupledChannels"
    if gate.kind == "scalar" and channels:
        node = low.unsqueeze(node, batch_of(node) + rank_of(node))
    if node.op != "placeholder":
        node.meta.setdefault("name", "g")
    return node
