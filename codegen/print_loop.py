"""Loops of a program, printed: over the tokens of a sequence, or the passes of a repeat.

In: a `Loop` node and the printer of the program it stands in. Out: a `for` statement whose body is
the loop's own program, the lists that collect its rows, and the carried values.
"""

from __future__ import annotations

import operator

from torch import fx

from nlc.codegen.names import identifier
from nlc.codegen.printer import Printer
from nlc.codegen.program import Loop


def print_loop(printer: Printer, node: fx.Node, loop: Loop) -> None:
    """Print the loop and bind its results."""
    writer, names = printer.writer, printer.names
    count = len(loop.items)
    items, carried = node.args[:count], node.args[count : count + len(loop.carried)]
    held = _begin(printer, node, loop, carried)
    rows = [names.fresh(f"{row}_rows") for row in loop.rows]
    for name in rows:
        writer.line(f"{name} = []")
    inner = Printer(loop.body, writer, names, printer.used)
    inner.pinned = set()
    inputs = {n.target: n for n in loop.body.inputs}
    for name, text in zip(loop.carried, held, strict=True):
        if name in inputs:
            inner.bind(inputs[name], text)
    taken = [names.fresh(item) for item in loop.items]
    for name, text in zip(loop.items, taken, strict=True):
        if name in inputs:
            inner.bind(inputs[name], text)
    _bind_outer(printer, inner, loop)
    counter = _counter(inner, loop, names.fresh) if loop.counter else None
    writer.line(_header(printer, loop, items, taken, counter))
    with writer.indent():
        inner.run()
        results, after = loop.body.result
        for name, value in zip(rows, results, strict=True):
            writer.line(f"{name}.append({inner.operand(value)})")
        for name, value in zip(held, after, strict=True):
            text = inner.operand(value)
            if text != name:
                writer.line(f"{name} = {text}")
    parts = {u.args[1]: u for u in node.users if u.target is operator.getitem}
    for i, (name, row) in enumerate(zip(rows, loop.rows, strict=True)):
        if i in parts:
            writer.line(f"{printer.take(row, parts[i], node)} = torch.stack({name}, 1)")
    for i, name in enumerate(held, len(rows)):
        if i in parts:
            printer.bind(parts[i], name)


def _begin(
    printer: Printer, node: fx.Node, loop: Loop, carried: tuple[object, ...]
) -> list[str]:
    """Give the carried values the names under which the loop changes them."""
    held = []
    for name, value in zip(loop.carried, carried, strict=True):
        text = printer.operand(value)
        known = isinstance(value, fx.Node) and value in printer.bound
        last = isinstance(value, fx.Node) and printer._last_use(value) <= printer._place[node]
        if known and last and text.isidentifier():
            held.append(text)
            continue
        fresh = printer.names.fresh(identifier(name))
        printer.writer.line(f"{fresh} = {text}")
        held.append(fresh)
    return held


def _bind_outer(printer: Printer, inner: Printer, loop: Loop) -> None:
    """Names from around the loop that its body uses as they are."""
    around = {text: n for n, text in printer.bound.items()}
    for node in loop.body.inputs:
        if node not in inner.bound and str(node.target) in around:
            inner.bind(node, str(node.target))
            inner.pinned.add(str(node.target))


def _counter(inner: Printer, loop: Loop, fresh: object) -> str:
    assert loop.counter is not None and callable(fresh)
    name: str = fresh(loop.counter)
    for node in loop.body.inputs:
        if node.target == loop.counter:
            inner.bind(node, name)
    return name


def _header(
    printer: Printer,
    loop: Loop,
    items: tuple[object, ...],
    taken: list[str],
    counter: str | None,
) -> str:
    rows = [printer.operand(item, 17) for item in items]
    if loop.kind == "tokens":
        rows = [f"{row}.unbind(1)" for row in rows]
    if len(rows) == 1:
        source, target = rows[0], taken[0]
    else:
        source, target = f"zip({', '.join(rows)}, strict=True)", ", ".join(taken)
    if counter is None:
        return f"for {target} in {source}:"
    inside = f"({target})" if len(taken) > 1 else target
    start = f", start={loop.start}" if loop.start else ""
    return f"for {counter}, {inside} in enumerate({source}{start}):"
