"""Loops of a program, printed: over the tokens of a sequence, and over the passes of a repeat.

In: a loop's node and the printer of the program it stands in. Out: a `for` statement whose body is
the loop's own program, the lists that collect its rows, and the carried values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from nlc.codegen.names import identifier
from nlc.codegen.printer import Printer
from nlc.codegen.program import Branch, Loop
from nlc.codegen.writer import split_call, split_names
from torch import fx


def parts_of(node: fx.Node) -> dict[Any, fx.Node]:
    """The parts of a tuple that are used, by place."""
    return {u.args[1]: u for u in node.users if u.target is operator.getitem}


def print_loop(printer: Printer, node: fx.Node, loop: Loop) -> None:
    """Print a loop over tokens and bind its results."""
    writer, names = printer.writer, printer.names
    count, end = len(loop.items), len(loop.items) + len(loop.carried)
    around = node.args[end : end + len(loop.around)]
    further = node.args[end + len(loop.around) :]
    given = further[len(further) - loop.kernel.count :] if loop.kernel is not None else ()
    rest = [printer.operand(a) for a in further[: len(further) - len(given)]]
    for name, item in zip(loop.items, node.args[:count], strict=True):
        # one line each, with what cuts it
        printer.settle(item, writer.room - 24, name.rpartition("_")[0])
    items = [printer.operand(item, 17) for item in node.args[:count]]
    held = hold(printer, node, loop.carried, node.args[count:end])
    parts = parts_of(node)
    if loop.kernel is not None:
        _print_kernel(printer, node, loop, list(given), held)
        writer.depth += 1
    rows = [names.fresh(f"{row}_rows") for row in loop.rows]
    for name in [] if loop.once else rows:
        writer.line(f"{name} = []")
    inner = Printer(loop.body, writer, names, printer.used)
    taken = [names.fresh(item) for item in loop.items]
    texts = dict(zip(loop.carried, held, strict=True)) | dict(zip(loop.items, taken, strict=True))
    texts |= {n: printer.operand(a) for n, a in zip(loop.around, around, strict=True)}
    if loop.counter:
        texts[loop.counter] = names.fresh(loop.counter)
    for place in loop.body.inputs:
        if str(place.target) in texts:
            inner.bind(place, texts[str(place.target)])
    inner.pinned = {texts[n] for n in loop.around}
    if loop.length:
        lines = _window_header(printer, loop, items, taken, texts, rest)
    elif loop.chunk:
        lengths = names.fresh("lengths")
        printer.used.add("cuts")
        position = texts["position"]
        writer.line(f"{lengths} = cuts({position}, {items[0]}.shape[1], {loop.chunk})")
        pieces = [f"{row}.split({lengths}, 1)" for row in items]
        lines = _over(taken, pieces, writer.room)
    elif loop.once:
        lines = []
    else:
        lines = _header(loop, items, taken, texts, rest, writer.room, names.fresh)
    for line in lines:
        writer.line(line)
    alone = [printer.bound.get(parts[i], "") for i in range(len(rows)) if i in parts]
    if loop.once and len(alone) == 1:
        # the one stream that is made may have its name at once
        names.used.discard(alone[0])
    with nullcontext() if loop.once else writer.indent():
        inner.run()
        results, after = loop.body.result
        for i, (name, row, value) in enumerate(zip(rows, loop.rows, results, strict=True)):
            text = inner.operand(value)
            if loop.once:
                if i in parts:
                    bound = printer.bound.get(parts[i]) or printer.take(row, parts[i], node)
                    names.used.add(bound)
                    if text != bound:
                        writer.line(f"{bound} = {text}")
                continue
            writer.line(f"{name} += {text}" if row in loop.lists else f"{name}.append({text})")
        for name, value in zip(held, after, strict=True):
            text = inner.operand(value)
            if text != name:
                writer.line(f"{name} = {text}")
    for i, (name, row) in enumerate(zip(rows, loop.rows, strict=True)):
        if loop.once:
            break
        if i in parts and row in loop.lists:
            printer.bind(parts[i], name)
        elif i in parts:
            join = "cat" if loop.chunk or loop.length else "stack"
            bound = printer.bound.get(parts[i]) or printer.take(row, parts[i], node)
            writer.line(f"{bound} = torch.{join}({name}, 1)")
    if loop.kernel is not None:
        writer.depth -= 1
    for i, name in enumerate(held, len(rows)):
        if i in parts:
            printer.bind(parts[i], name)


def _print_kernel(
    printer: Printer, node: fx.Node, loop: Loop, given: list[Any], held: list[str]
) -> None:
    """Print the call that runs the whole loop where kernels run, and `else:`."""
    kernel, writer, parts = loop.kernel, printer.writer, parts_of(node)
    assert kernel is not None
    for value in given:
        printer.settle(value, writer.room - 24)
    words = [printer.operand(value) for value in given]
    states = [held[loop.carried.index(name)] for name in kernel.carried]
    results = [
        printer.take(row, parts[i], node) if i in parts else "_" for i, row in enumerate(loop.rows)
    ]
    first = f'{states[0]}["{kernel.part}"]' if kernel.part else states[0]
    writer.line(f"if kernels.{kernel.guard}({first}):")
    with writer.indent():
        head = f"{', '.join([*results, *states])} = kernels.{kernel.name}("
        writer.call(head, [*words, *states])
    writer.line("else:")


def _over(taken: list[str], pieces: list[str], room: int) -> list[str]:
    """`for a, b in zip(...)`, split where it is too long."""
    if len(pieces) == 1:
        return [f"for {taken[0]} in {pieces[0]}:"]
    head = f"for {', '.join(taken)} in zip("
    return split_call(head, [*pieces, "strict=True"], "):", room)


def hold(
    printer: Printer, node: fx.Node, wanted: tuple[str, ...], values: tuple[Any, ...]
) -> list[str]:
    """Give the carried values the names under which the loop changes them."""
    held = []
    for name, value in zip(wanted, values, strict=True):
        text = printer.operand(value)
        free = isinstance(value, fx.Node) and value in printer.bound and printer.done(value, node)
        if free and text not in held:
            held.append(text)
            continue
        fresh = printer.names.fresh(identifier(name))
        printer.writer.line(f"{fresh} = {text}")
        held.append(fresh)
    return held


def _header(
    loop: Loop,
    items: list[str],
    taken: list[str],
    texts: dict[str, str],
    rest: list[str],
    room: int,
    fresh: Callable[[str], str],
) -> list[str]:
    rows = [f"{row}.unbind(1)" for row in items]
    start = rest[0] if loop.counter else None
    if not rows:
        counter = texts[loop.counter] if loop.counter else "_"
        tokens = rest[-1]
        span = f"range({start}, {start} + {tokens})" if start else f"range({tokens})"
        return [f"for {counter} in {span}:"]
    if len(rows) == 1:
        head, arguments, tail = f"for {taken[0]} in {rows[0]}", [], ":"
        inside = taken[0]
    else:
        head, arguments, tail = f"for {', '.join(taken)} in zip(", [*rows, "strict=True"], "):"
        inside = f"({', '.join(taken)})"
    if loop.counter:
        source = rows[0] if len(rows) == 1 else f"zip({', '.join(rows)}, strict=True)"
        head = f"for {texts[loop.counter]}, {inside} in enumerate("
        if len(rows) > 1 and (len(source) + 5 > room or len(head) > room):
            name = fresh("tokens")
            first = split_call(f"{name} = zip(", [*rows, "strict=True"], ")", room)
            tail = f") in enumerate({name}, start={start}):"
            return [*first, *split_names(f"for {texts[loop.counter]}, (", taken, tail, room)]
        arguments, tail = [source, f"start={start}"], "):"
    elif len(rows) > 1 and len(head) > room:
        name = fresh("tokens")
        first = split_call(f"{name} = zip(", [*rows, "strict=True"], ")", room)
        return [*first, *split_names("for (", taken, f") in {name}:", room)]
    return split_call(head, arguments, tail, room) if arguments else [head + tail]


def _window_header(
    printer: Printer,
    loop: Loop,
    items: list[str],
    taken: list[str],
    texts: dict[str, str],
    rest: list[str],
) -> list[str]:
    """Say how a sequence is cut into windows; the first and the last may be parts of one."""
    lengths = printer.names.fresh("lengths")
    printer.used.add("cuts")
    cut = f"{lengths} = cuts({', '.join([*rest, str(loop.length)])})"
    counter = texts[str(loop.counter)]
    if not items:
        return [cut, f"for {counter} in {lengths}:"]
    pieces = [lengths, *(f"{item}.split({lengths}, 1)" for item in items)]
    head = f"for {', '.join([counter, *taken])} in zip("
    return [cut, *split_call(head, [*pieces, "strict=True"], "):", printer.writer.room)]


def print_branch(printer: Printer, node: fx.Node, branch: Branch) -> None:
    """Print statements under a condition; branches that follow one another may share it."""
    writer, count = printer.writer, len(branch.carried)
    values, around = node.args[1 : 1 + count], node.args[1 + count :]
    condition = printer.operand(node.args[0])
    held = hold(printer, node, branch.names, values)
    inner = Printer(branch.body, writer, printer.names, printer.used)
    texts = dict(zip(branch.carried, held, strict=True))
    texts |= {n: printer.operand(a) for n, a in zip(branch.around, around, strict=True)}
    for place in branch.body.inputs:
        if str(place.target) in texts:
            inner.bind(place, texts[str(place.target)])
    inner.pinned = {texts[n] for n in branch.around}
    if writer.under != (len(writer.lines), writer.depth, condition):
        writer.line(f"if {condition}:")
    with writer.indent():
        inner.run()
        for name, value in zip(held, branch.body.result, strict=True):
            text = inner.operand(value)
            if text != name:
                writer.line(f"{name} = {text}")
    writer.under = (len(writer.lines), writer.depth, condition)
    parts = parts_of(node)
    for i, name in enumerate(held):
        if i in parts:
            printer.bind(parts[i], name)


def print_passes(printer: Printer, node: fx.Node, loop: Any) -> None:
    """Print the loop over the passes of a repeat."""
    writer, names = printer.writer, printer.names
    past, *rest = node.args
    values, modules = rest[: len(loop.inputs)], rest[len(loop.inputs) :]
    parts = parts_of(node)
    crossing = [name for name in loop.inputs if name in loop.outputs]
    texts: dict[str, str] = {}
    for name, value in zip(loop.inputs, values, strict=True):
        text = printer.operand(value)
        if name not in crossing:
            texts[name] = text
            continue
        free = isinstance(value, fx.Node) and value in printer.bound and printer.done(value, node)
        if (free and getattr(value, "op", "") != "placeholder") or text == name:
            texts[name] = text
        else:
            texts[name] = names.fresh(name)
            writer.line(f"{texts[name]} = {text}")
    for name in loop.outputs:
        if name not in texts:
            texts[name] = names.fresh(name)
    states = names.fresh(f"{loop.name}_states")
    index, layer = names.fresh("i"), names.fresh("layer")
    writer.line(f"{states} = {{}}")
    writer.line(f"for {index}, {layer} in enumerate(self.{loop.name}):")
    with writer.indent():
        inputs = [texts[n] for n in loop.inputs]
        inputs += [printer.operand(m) for m in modules]
        inputs.append(f"{printer.operand(past, 17)}[str({index})]")
        inputs += [f"{loop.ahead} if {index} == 0 else None"] if loop.ahead else []
        outs = [texts[n] for n in loop.outputs]
        target = outs[0] if len(outs) == 1 else f"({', '.join(outs)})"
        method = "" if loop.batch == 2 else ".step"
        head = f"{target}, {states}[str({index})] = {layer}{method}("
        for line in split_call(head, inputs, ")", writer.room):
            writer.line(line)
    for i, name in enumerate([*loop.outputs, None]):
        if i in parts:
            printer.bind(parts[i], states if name is None else texts[name])
