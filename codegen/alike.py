"""Memories that are equal in form share one class, of which each is an instance.

In: the writers of a block's memories. Out: the same, where those whose classes would say the same
of a memory called M name one class, and the writer of that class. Whether they do is seen from what
would be written, not from what anything is called. Kernels of one token and of maps with layers,
which follow from the class as well, are shared with it; what has others keeps a class of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from nlc.codegen.torch_memory import MemoryWriter
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr, Graph, rewrite

# what a memory is called in a class for several
CALLED = ("M", "N", "S", "memory")
# how long a line with several places may be
MOST = 84


def share_classes(
    graph: Graph,
    writers: dict[str, MemoryWriter],
    names: Collection[str],
    free: Callable[[int], str],
    kernels: Callable[[MemoryWriter, list[MemoryWriter]], None],
) -> dict[str, MemoryWriter]:
    """Give the writers of classes by name; `names` are those of the block.

    `free` gives a name to the first, second, ... class for several; `kernels` gives the class of
    some memories the kernels that they have.
    """
    called = next((name for name in CALLED if name not in names), None)
    groups: dict[tuple[object, ...], list[tuple[MemoryWriter, MemoryWriter]]] = {}
    for own in writers.values():
        if called is not None and _plain(own):
            plain = _called(graph, own, called)
            if plain is not None:
                key = (_text(plain), *_tiles(own))
                groups.setdefault(key, []).append((own, plain))
    several = [group for group in groups.values() if len(group) > 1]
    for number, group in enumerate(several, 1):
        name, (first, plain) = free(number), group[0]
        plain.name, plain.used = name, first.used
        plain.lines = _places([own.lines for own, _ in group])
        plain.reads = frozenset(read for own, _ in group for read in own.reads)
        plain.stands_for = tuple(own.memory.name for own, _ in group)
        kernels(plain, [own for own, _ in group])
        for own, _ in group:
            own.name, own.written_by = name, plain
            own.step_kernel = own.layer_kernels = None
    return {own.name: own.written_by or own for own in writers.values()}


def _plain(writer: MemoryWriter) -> bool:
    """Say whether all of a class follows from the memory's equations and schedule."""
    memory = writer.memory
    if memory.stays or memory.map.kind == "kernel" or memory.sums or memory.recent:
        return False
    return writer.shared is None and not any((writer.kernels, writer.rows_kernel))


def _tiles(writer: MemoryWriter) -> tuple[object, ...]:
    """What of kernels does not follow from the class: how long tiles may be."""
    plan = writer.layer_kernels
    return () if plan is None else (plan.in_turn, plan.layers.longest)


def _text(writer: MemoryWriter) -> str:
    """The class without its places in the spec, and without reads but one that `forward` makes."""
    out, lines = Writer(), tuple(line.rpartition("   (")[0] for line in writer.lines)
    reads = frozenset() if writer.on_the_way is None else writer.reads
    plain = replace(writer, name="C", reads=reads, lines=lines, used=set())
    plain.step_kernel = plain.layer_kernels = None
    plain.write(out)
    return out.text()


def _places(of: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The equations that several have, each with all places, or the first where they are many."""
    found = []
    for same in zip(*of, strict=True):
        text, _, _ = same[0].rpartition("   (")
        places = list(dict.fromkeys(line.rpartition("   (")[2][:-1] for line in same))
        line = f"{text}   ({', '.join(places)})"
        short = len(places) == 1 or len(line) <= MOST
        found.append(line if short else f"{text}   ({places[0]}, ...)")
    return tuple(found)


def _called(graph: Graph, writer: MemoryWriter, name: str) -> MemoryWriter | None:
    """The writer of the same memory with another name, if a block would call it alike."""
    old = writer.memory.name

    def rename(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if not node.has("memory") or node.attr("memory") != old:
            return None
        words = dict(node.attrs) | {"memory": name}
        return graph.make(node.op, *args, span=node.span, **words)

    memory, schedule = replace(writer.memory, objective=None), writer.schedule
    found = list(_expressions((memory, schedule)))
    new = dict(zip(map(id, found), rewrite(graph, found, rename), strict=True))
    made = replace(
        writer,
        name=name,
        memory=replace(_with(memory, new), name=name),
        schedule=replace(_with(schedule, new), memory=name),
        windows=_and(writer.windows, old, name),
        starts=_and(writer.starts, old, name),
        leads=_and(writer.leads, old, name),
    )
    for given, there in zip(_arguments(writer), _arguments(made), strict=True):
        if rewrite(graph, given, rename) != list(there):
            return None
    return made


def _arguments(writer: MemoryWriter) -> list[dict[Expr, str]]:
    """What the methods take of the block."""
    start, run, step = writer.start_arguments, writer.run_arguments, writer.step_arguments
    return [start, run, step, writer.token_arguments, *writer.ask_arguments]


def _and(of: Any, old: str, name: str) -> dict[str, Any]:
    """The same, of the new name too."""
    return {**of, name: of[old]} if old in of else dict(of)


def _expressions(value: object) -> Iterator[Expr]:
    """List the expressions inside data."""
    if isinstance(value, Expr):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _expressions(entry)
    elif is_dataclass(value):
        for place in fields(value):
            yield from _expressions(getattr(value, place.name))


def _with(value: Any, new: dict[int, Expr]) -> Any:
    """Put other expressions into data."""
    if isinstance(value, Expr):
        return new[id(value)]
    if isinstance(value, tuple):
        found = tuple(_with(entry, new) for entry in value)
        return found if any(a is not b for a, b in zip(found, value, strict=True)) else value
    if not is_dataclass(value):
        return value
    changed = {}
    for place in fields(value):
        before = getattr(value, place.name)
        after = _with(before, new)
        if after is not before:
            changed[place.name] = after
    return replace(value, **changed) if changed and not isinstance(value, type) else value
