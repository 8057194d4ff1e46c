"""What a memory does at each token of a window, and at its end.

In: a memory, the frame of a token and what the memory has kept so far. Out: its states after the
token and what it keeps from there. A memory that moves with every token has windows of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import sizes
from nlc.ir.system import Memory
from nlc.runtime.evaluate import States, TokenFrame, evaluate, evaluate_all
from nlc.runtime.maps import front


@dataclass(frozen=True)
class Window:
    """What is kept of an unfinished window: sums, and values of each token [rows, tokens, ...]."""

    sums: dict[str, Tensor]
    recent: dict[str, Tensor]


def empty(memory: Memory, rows: int) -> Window:
    """Return what is kept before a window's first token."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(rows, *shape, dtype=torch.float64)

    return Window(
        {kept.slot: zeros(*sizes(kept.shape)) for kept in memory.sums},
        {kept.slot: zeros(0, *sizes(kept.shape)) for kept in memory.recent},
    )


def advance(memory: Memory, frame: TokenFrame, window: Window) -> tuple[States, Window]:
    """Take in a token; at the window's last one, move every state from the states before it."""
    after = collect(memory, frame, window)
    if (frame.position + 1) % memory.window:
        return frame.states[memory.name, "prev"], after
    after = conclude(memory, frame, after)
    return move(memory, frame), after


def collect(memory: Memory, frame: TokenFrame, window: Window) -> Window:
    """Take in a token: what it adds by itself."""
    after = Window(dict(window.sums), dict(window.recent))
    for node in _windows(memory):
        if _is_known(memory, node):
            _collect(node, frame, after)
    return after


def conclude(memory: Memory, frame: TokenFrame, window: Window) -> Window:
    """Find all totals at the end of a window, for the frame; what is kept of it begins anew."""
    after = Window(dict(window.sums), dict(window.recent))
    for node in _windows(memory):
        if not _is_known(memory, node):
            _conclude(memory, node, frame, after)
        elif node.attr("how") in ("sum", "mean"):
            _total(node, frame, after)
    return Window(after.sums, empty(memory, frame.rows).recent)


def move(memory: Memory, frame: TokenFrame) -> States:
    """Move every state from the states before it; the frame knows all totals."""
    before = frame.states[memory.name, "prev"]
    moved = {name: dict(parts) for name, parts in before.items()}
    values = evaluate_all([assignment.value for assignment in memory.update], frame)
    for assignment, value in zip(memory.update, values, strict=True):
        old = before[assignment.var][assignment.part]
        moved[assignment.var][assignment.part] = front(value, old.dim() - 1).expand(old.shape)
    return moved


def _windows(memory: Memory) -> list[Expr]:
    return [n for n in postorder([a.value for a in memory.update]) if n.op == "window"]


def _is_known(memory: Memory, node: Expr) -> bool:
    """Say whether each token adds to a window by itself, without other totals."""
    return not node.attr("again") and node.attr("period") == ("tokens", memory.window)


def _collect(node: Expr, frame: TokenFrame, window: Window) -> None:
    """Take a token into one window."""
    (x,), how, slot = node.args, node.attr("how"), node.attr("slot")
    value = evaluate(x, frame).expand(frame.rows, *sizes(x.shape))
    match how:
        case "each":
            window.recent[slot] = torch.cat([window.recent[slot], value[:, None]], dim=1)
        case "end":
            window.recent[slot] = value[:, None]
        case "last":
            frame.totals[node] = value
        case _:
            window.sums[slot] = window.sums[slot] + value


def _total(node: Expr, frame: TokenFrame, window: Window) -> None:
    """Take a whole sum, and begin anew where its period ends."""
    slot, (_, length) = node.attr("slot"), node.attr("period")
    total = window.sums[slot]
    frame.totals[node] = total / length if node.attr("how") == "mean" else total
    over = (frame.position + 1) % length == 0
    window.sums[slot] = torch.zeros_like(total) if over else total


def _conclude(memory: Memory, node: Expr, frame: TokenFrame, window: Window) -> None:
    """Find what is known when a window ends: sums over updates, second passes over its tokens."""
    (x,), how = node.args, node.attr("how")
    if node.attr("again"):
        frame.totals[node] = _second_pass(memory, x, how, frame, window)
    else:
        value = evaluate(x, frame).expand(frame.rows, *sizes(x.shape))
        window.sums[node.attr("slot")] = window.sums[node.attr("slot")] + value
        _total(node, frame, window)


def _second_pass(memory: Memory, x: Expr, how: str, frame: TokenFrame, window: Window) -> Tensor:
    """Reduce a value over all tokens of a window, now that its other totals are known."""
    first = memory.window - 1 if how == "last" else 0
    values = []
    for place in range(first, memory.window):
        # of some there is the last one alone
        each = {slot: kept[:, place - memory.window] for slot, kept in window.recent.items()}
        again = replace(frame, each=each, gradients={})
        values.append(evaluate(x, again).expand(frame.rows, *sizes(x.shape)))
    total = torch.stack(values).sum(0)
    return total / memory.window if how == "mean" else total
