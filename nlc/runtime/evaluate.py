"""The value of an expression for one token of every row, and the gradients inside updates.

In: an expression and a `TokenFrame`, which holds what its leaves stand for. Out: a tensor
[rows, *shape]. Nodes are evaluated in order, without recursion, each once. Gradients come from
torch.autograd, differentiable again; nothing here derives one by rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from nlc.ir.expr import Expr
from nlc.ir.shape import sizes
from nlc.runtime.maps import softmax_read
from nlc.runtime.operations import ROWS

Parts = dict[str, Tensor]
# the states of a memory by their names: "" for the memory itself
States = dict[str, Parts]


@dataclass(frozen=True)
class Kernel:
    """A softmax memory as a read needs it; `window` counts pairs, None where all are seen."""

    scale: float
    window: int | None
    persistent: tuple[str, str] | None


@dataclass
class TokenFrame:
    """What the leaves of expressions stand for, within one module and one token.

    `states` are by (memory, when); `histories` the past of each slot, `remembered` the values to
    be added to it. `totals` are the values of `window` nodes, `each` those that a second pass over
    a window reads at its present token; `answers` are gradients of the task at other values, by
    the index of what asks for them and part. `tracks` says whether anything outside may ask for a
    gradient.
    """

    rows: int
    position: int
    parameters: Mapping[str, Tensor]
    streams: dict[str, Tensor]
    defaults: Mapping[str, Expr]
    states: dict[tuple[str, str], States]
    kernels: Mapping[str, Kernel]
    histories: Mapping[str, Tensor]
    remembered: dict[str, Tensor]
    tracks: bool
    totals: dict[Expr, Tensor] = field(default_factory=dict)
    each: Mapping[str, Tensor] = field(default_factory=dict)
    variables: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    answers: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    gradients: dict[tuple[int, ...], dict[str, Tensor]] = field(default_factory=dict)

    def stream(self, name: str) -> Tensor:
        """Return a stream; an input that was not given takes its default over other streams."""
        if name not in self.streams and name in self.defaults:
            self.streams[name] = evaluate(self.defaults[name], self)
        return self.streams[name]

    def parameter(self, name: str) -> Tensor:
        """Return a parameter of this module."""
        return self.parameters[name]

    def state(self, memory: str, var: str, part: str, when: str) -> Tensor:
        """Return one tensor of a memory's state."""
        return self.states[memory, when][var][part]

    def window(self, node: Expr) -> Tensor:
        """Return the value of a `window` node."""
        single = node.attr("how") in ("each", "end")
        return self.each[node.attr("slot")] if single else self.totals[node]

    def variable(self, memory: str, part: str) -> Tensor:
        """Return the point at which an objective is differentiated."""
        return self.variables[memory, part]

    def asked(self, index: int, part: str) -> Tensor:
        """Return a gradient of the task at another value."""
        return self.answers[index, part]

    def past(self, slot: str, length: int, value: Tensor) -> Tensor:
        """Return what a slot remembers, zeros at first, and note the present value."""
        value = value.expand(self.rows, *value.shape[1:])
        self.remembered[slot] = value
        past = self.histories.get(slot)
        if past is None:
            past = value.new_zeros(self.rows, length, *value.shape[1:])
        return past.reshape(self.rows, length, *value.shape[1:])

    def attend(self, query: Tensor, node: Expr) -> Tensor:
        """Read a softmax memory: its learned pairs and the pairs of the window."""
        name = node.attr("memory")
        kernel = self.kernels[name]
        pairs = self.states[name, node.attr("when")][""]
        keys, values = pairs["key"], pairs["value"]
        if kernel.window is not None:
            start = max(keys.shape[-2] - kernel.window, 0)
            keys, values = keys[..., start:, :], values[..., start:, :]
        if kernel.persistent is not None:
            first = [self.parameter(p)[None] for p in kernel.persistent]
            first = [p.expand(self.rows, *p.shape[1:]) for p in first]
            keys = torch.cat([first[0], keys], dim=-2)
            values = torch.cat([first[1], values], dim=-2)
        return softmax_read(query, keys, values, kernel.scale, node.attr("lead"))

    def gradient(self, node: Expr, at: Sequence[Tensor]) -> Tensor:
        """Differentiate an objective, summed over its copies, at the given point.

        The point is a variable of its own, so whatever else depends on the same state (streams,
        other memories) is a constant here, and yet all of it is differentiable from outside.
        """
        parts: tuple[str, ...] = tuple(node.attr("parts"))
        key = (id(node.args[0]), *map(id, node.args[1:]))
        if key not in self.gradients:
            memory = node.attr("memory")
            with torch.enable_grad():
                points = [_variable(value, self.rows) for value in at]
                named = {(memory, part): point for part, point in zip(parts, points, strict=True)}
                inner = replace(self, variables={**self.variables, **named}, gradients={})
                total = evaluate(node.args[0], inner).sum()
                found = _differentiate(total, points, self.tracks)
            self.gradients[key] = dict(zip(parts, found, strict=True))
        return self.gradients[key][node.attr("part")]


def _variable(value: Tensor, rows: int) -> Tensor:
    point = value.expand(rows, *value.shape[1:]).clone()
    return point if point.requires_grad else point.requires_grad_()


def _differentiate(total: Tensor, points: Sequence[Tensor], tracks: bool) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(point) for point in points]
    found = torch.autograd.grad(total, points, create_graph=tracks, allow_unused=True)
    return [
        torch.zeros_like(point) if gradient is None else gradient
        for gradient, point in zip(found, points, strict=True)
    ]


@lru_cache(maxsize=8192)
def order(root: Expr) -> tuple[Expr, ...]:
    """List the nodes a value needs, arguments first; the objective in a `grad` is left out."""
    found: list[Expr] = []
    seen: set[Expr] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            found.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(needed(node)))
    return tuple(found)


def needed(node: Expr) -> tuple[Expr, ...]:
    """Return the arguments whose values a node needs; what windows give is known before."""
    if node.op in ("window", "ask"):
        return ()
    return node.args[1:] if node.op == "grad" else node.args


def evaluate(root: Expr, frame: TokenFrame) -> Tensor:
    """Return the value of an expression, [rows or 1, *shape]."""
    return evaluate_all([root], frame)[0]


def evaluate_all(roots: Sequence[Expr], frame: TokenFrame) -> list[Tensor]:
    """Return the values of several expressions that share what they have in common."""
    memo: dict[Expr, Tensor] = {}
    for root in roots:
        for node in order(root):
            if node not in memo:
                value = ROWS[node.op](node, [memo[arg] for arg in needed(node)], frame)
                assert value.shape[1:] == sizes(node.shape), (node.op, value.shape, node.shape)
                memo[node] = value
    return [memo[root] for root in roots]
