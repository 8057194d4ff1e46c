"""What a name can stand for while expressions are resolved.

A value is one expression, or a `Struct`: one expression per part of a map with several parts
(a bare layered memory, its gradient, a state of its shape). Elementwise functions act part by part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape
from nlc.ir.system import Map
from nlc.semantics.context import Context
from nlc.source import Span


@dataclass(frozen=True)
class Struct:
    """Values by part of a map, with the map's own part names."""

    map: Map
    parts: tuple[tuple[str, Expr], ...]

    def part(self, name: str) -> Expr:
        """Return one part."""
        return dict(self.parts)[name]


Value = Expr | Struct


@dataclass(frozen=True)
class Readable:
    """Something that can be applied to a stream: weights, or a memory's state at some time."""

    name: str
    map: Map
    lead: Shape
    parts: tuple[Expr, ...]
    memory: str = ""
    when: str = ""
    # the weights of its slots, over which a read sums
    route: Expr | None = None


def pack(map: Map, parts: tuple[tuple[str, Expr], ...]) -> Value:
    """Make the value of a map's parts: the one expression, or a `Struct`."""
    return parts[0][1] if len(parts) == 1 else Struct(map, parts)


def bare(context: Context, readable: Readable, span: Span) -> Value:
    """Weights or a memory by their bare name."""
    map = readable.map
    value = pack(map, tuple((p.name, e) for p, e in zip(map.parts, readable.parts, strict=True)))
    if map.kind == "vector" and isinstance(value, Expr) and map.outputs != map.chain:
        return context.graph.make(
            "reshape", value, last=len(map.chain), axes=map.outputs, span=span
        )
    return value


def select(context: Context, value: Value, name: str, span: Span) -> Value:
    """`value.name`: the parts of that name, or under it."""
    if isinstance(value, Struct):
        chosen = tuple(
            (part, expr)
            for part, expr in value.parts
            if part == name or part.startswith(f"{name}.") or part.endswith(f".{name}")
        )
        if chosen:
            return chosen[0][1] if len(chosen) == 1 else Struct(value.map, chosen)
        known = sorted({part.split(".")[0] for part, _ in value.parts})
        context.unknown("part", name, span, known, "NL0310")
    if name == "weight":
        return value
    context.fail(
        "NL0310", f"there is no part `{name}` here", span, "this value has no parts",
        "only maps with several parts have them: `M.layer1`, `M.gate`",
    )  # fmt: skip


def each(
    context: Context, values: list[Value], make: Callable[[list[Expr]], Expr], span: Span
) -> Value:
    """Act part by part where a value has parts; plain values go to every part."""
    structs = [v for v in values if isinstance(v, Struct)]
    if not structs:
        return make([v for v in values if isinstance(v, Expr)])
    first = structs[0]
    names = [name for name, _ in first.parts]
    for other in structs[1:]:
        if [name for name, _ in other.parts] != names:
            context.fail(
                "NL0404", "values with different parts do not combine", span,
                f"one has {', '.join(names)}; the other {', '.join(n for n, _ in other.parts)}",
                "combine parts by name: `self.gate`, `grad.gate`",
            )  # fmt: skip
    return Struct(
        first.map,
        tuple(
            (name, make([v.part(name) if isinstance(v, Struct) else v for v in values]))
            for name in names
        ),
    )
