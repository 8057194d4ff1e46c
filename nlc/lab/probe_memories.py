"""What memories do while a text is read: surprise, states and updates, gates, activations.

In: a system and the tokens of a run of its reference interpreter, one by one. Out: a description
of each memory of each instance, in plain numbers. Everything comes from the equations: the inner
loss is the memory's own objective at its state before the token, and the gates are those of the
normal form of its update, whatever they are called in the spec.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Affine, Neither, NormalForm
from nlc.ir.online import task_gradient
from nlc.ir.system import Assignment, Block, Equation, Memory, Model, Repeat, Step, System
from nlc.lab.spectrum import entropy, number, short, singular_values, spread
from nlc.passes.normalise import normalise
from nlc.passes.unwound import unwound
from nlc.runtime.evaluate import Parts, States, TokenFrame, evaluate

# tokens whose updates are taken apart into singular values
SAMPLED = 16
# singular values of activations that are noted
LARGEST = 64


@dataclass(frozen=True)
class Kind:
    """What is alike in all instances of a memory: its gates, by the states that they keep."""

    memory: Memory
    forms: tuple[tuple[str, NormalForm], ...]

    @cached_property
    def gates(self) -> dict[str, Expr]:
        """The entries of D, named `M` where a state keeps itself and `M <- S` where S flows in.

        Parts of a map that share a gate share its name.
        """
        found: dict[tuple[str, str], dict[str, Expr]] = {}
        for part, form in self.forms:
            if not isinstance(form, Affine):
                continue
            for (source, _), row in zip(form.states, form.decay, strict=True):
                for (target, _), gate in zip(form.states, row, strict=True):
                    if gate is not None and not self.is_learned(gate.value):
                        found.setdefault((target, source), {})[part] = gate.value
        gates = {}
        for (target, source), by_part in found.items():
            alike = len({id(value) for value in by_part.values()}) == 1
            for part, value in list(by_part.items())[: 1 if alike else None]:
                into, out_of = (
                    label(self.memory, v, "" if alike else part) for v in (target, source)
                )
                gates[into if target == source else f"{into} <- {out_of}"] = value
        return gates

    def is_learned(self, value: Expr) -> bool:
        """Say whether a value asks for the gradient of the task, known only between tokens."""
        own = task_gradient(self.memory.name)
        return any(n.op == "stream" and n.attr("name") == own for n in postorder([value]))

    @cached_property
    def erasures(self) -> dict[str, tuple[Expr, Expr]]:
        """For each write that reads what stood there: where it reads, and where it writes.

        The tokens of a window write together, so nothing is said of them.
        """
        found: dict[str, tuple[Expr, Expr]] = {}
        for part, form in () if self.waits else self.forms:
            if not isinstance(form, Affine):
                continue
            for place, write in enumerate(form.writes, 1):
                which = f", write {place}" if len(form.writes) > 1 else ""
                for (var, _), p, b in zip(form.states, write.reads, write.targets, strict=True):
                    if p is not None and b is not None:
                        found[label(self.memory, var, part) + which] = p, b
        return found

    @cached_property
    def windows(self) -> list[Expr]:
        """What gates and writes ask of a whole window."""
        values = [*self.gates.values(), *(e for pair in self.erasures.values() for e in pair)]
        return [node for node in postorder(values) if node.op == "window"]

    @property
    def waits(self) -> bool:
        """Say whether it moves only when a window has ended, or the task's answer is known."""
        return self.memory.window > 1 or self.memory.is_task

    @property
    def is_known(self) -> bool:
        """Say whether gates need no second pass over a window."""
        return not any(node.attr("again") for node in self.windows)

    @property
    def reason(self) -> str:
        """Why some part of the update has no gates."""
        return next((f.reason for _, f in self.forms if isinstance(f, Neither)), "")

    def sampled(self, length: int) -> frozenset[int]:
        """The tokens whose updates are taken apart, evenly over those at which it moves."""
        window = self.memory.window
        moves = range(window if self.memory.is_task else window - 1, length, window)
        gap = max(1, math.ceil(len(moves) / SAMPLED))
        return frozenset(moves[::gap])


def kinds(system: System) -> dict[tuple[str, str], Kind]:
    """Find the gates of all memories that have an update, by block and name."""
    found = {}
    for block in system.blocks:
        for memory in block.memories:
            if memory.map.kind != "kernel" and memory.update:
                period = system.level(memory.level).period
                one = unwound(system.graph_of, _written_out(system.graph_of, memory), period)
                found[block.name, memory.name] = Kind(memory, normalise(system.graph_of, one))
    return found


def _written_out(graph: Graph, memory: Memory) -> Memory:
    """Put an outer product in the place of the task's gradient, which is a whole matrix.

    What an update keeps of its state does not depend on how many such products it adds.
    """

    def known(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if node.op != "variable" or len(node.shape) != len(memory.lead) + 2:
            return None
        *lead, rows, columns = node.shape
        sides = [
            graph.make("stream", name=task_gradient(memory.name), shape=(*lead, axis))
            for axis in (rows, columns)
        ]
        return graph.make("outer", *sides)

    if not memory.is_task:
        return memory
    values = iter(rewrite(graph, [a.value for a in memory.update], known))
    update = tuple(Assignment(a.var, a.part, next(values)) for a in memory.update)
    return replace(memory, update=update)


@dataclass
class Seen:
    """One memory of one instance, over the tokens so far."""

    kind: Kind
    sampled: frozenset[int]
    # not every block counts its tokens
    count: int = 0
    losses: list[Tensor] = field(default_factory=list)
    first: dict[str, Parts] = field(default_factory=dict)
    last: dict[str, Parts] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    moves: dict[str, list[float]] = field(default_factory=dict)
    entropies: dict[str, list[Tensor]] = field(default_factory=dict)
    gates: dict[str, list[Tensor]] = field(default_factory=dict)
    erased: dict[str, list[Tensor]] = field(default_factory=dict)
    pending: dict[Expr, list[Tensor]] = field(default_factory=dict)

    def token(self, frame: TokenFrame) -> None:
        """Take in a token whose update is done."""
        memory, number = self.kind.memory, self.count
        self.count += 1
        before = _detached(frame.states[memory.name, "prev"])
        after = _detached(frame.states.get((memory.name, "post"), before))
        if memory.is_task:
            # it moved when this token came, and so knew what follows the one before
            gone_back = memory.restart is not None and number % memory.restart.count == 0
            before = self.last if self.last and not gone_back else after
        if memory.objective is not None and not memory.is_task:
            self.losses.append(inner_loss(memory, frame))
        self.first = self.first or {name: dict(parts) for name, parts in before.items()}
        self.last = after
        for var, parts in after.items():
            change = {name: value - before[var][name] for name, value in parts.items()}
            own = label(memory, var)
            self.norms.setdefault(own, []).append(norm(parts.values(), len(memory.lead)))
            self.moves.setdefault(own, []).append(norm(change.values(), len(memory.lead)))
            if number in self.sampled:
                self.take_apart(var, change)
        self.read_gates(frame)

    def take_apart(self, var: str, change: Parts) -> None:
        """Note the spectral entropy of an update, for each of its matrices."""
        for part in self.kind.memory.variable(var).parts:
            finite = bool(torch.isfinite(change[part.name]).all())
            if finite and len(part.shape) == 2 and min(axis.size for axis in part.shape) > 1:
                found = entropy(singular_values(change[part.name])).flatten()
                name = label(self.kind.memory, var, part.name)
                self.entropies.setdefault(name, []).append(found[~found.isnan()])

    def read_gates(self, frame: TokenFrame) -> None:
        """Evaluate the gates of a token, or of a window at its end."""
        kind = self.kind
        ends = self.count % kind.memory.window == 0
        if not kind.is_known:
            return
        frame = replace(frame, totals=dict(frame.totals), remembered={}, gradients={})
        for node in kind.windows:
            values = self.pending.setdefault(node, [])
            values.append(evaluate(node.args[0], frame))
            if ends:
                frame.totals[node] = _reduced(node, values)
                self.pending[node] = []
        if ends:
            for name, value in kind.gates.items():
                self.gates.setdefault(name, []).append(evaluate(value, frame).detach())
            for name, (p, b) in kind.erasures.items():
                there = -(evaluate(p, frame) * evaluate(b, frame))
                self.erased.setdefault(name, []).append(there.sum(-1))

    def described(self, task_loss: Tensor) -> dict[str, Any]:
        """Put into plain numbers; `task_loss` [rows, tokens] is what a task memory learns from."""
        memory = self.kind.memory
        loss = task_loss if memory.is_task else None
        if self.losses:
            loss = torch.stack([x.reshape(x.shape[0], -1).mean(-1) for x in self.losses], -1)
        found: dict[str, Any] = {"level": memory.level}
        if loss is not None:
            found["loss"] = number(float(loss.mean()))
            found["loss_by_token"] = [number(float(x)) for x in loss.mean(0)]
        for own, norms in self.norms.items():
            moved = [x for x in self.moves[own] if x > 0]
            found.setdefault("states", {})[own] = {
                "norm": number(norms[-1]),
                "norm_by_token": [number(x) for x in norms],
                "update": number(sum(moved) / len(moved)) if moved else 0.0,
            }
        spreads = {}
        for var, parts in self.last.items():
            for part, value in parts.items():
                name = label(memory, var, part)
                if name in self.entropies:
                    change = value - self.first[var][part]
                    update = self.update_spread(name, min(value.shape[-2:]))
                    spreads[name] = {"update": update, "change": spread(change)}
        found["spectra"] = spreads
        found["gates"] = {name: self.gate(name, values) for name, values in self.gates.items()}
        found["erases"] = {
            name: range_of(torch.cat(values).reshape(-1, *values[0].shape[1:]).mean(0))
            for name, values in self.erased.items()
        }
        if self.kind.reason:
            found["no_gates"] = self.kind.reason
        return found

    def update_spread(self, name: str, full: int) -> dict[str, Any] | None:
        """Average over the updates that were taken apart."""
        values = torch.cat(self.entropies[name])
        if not len(values):
            return None
        rank = short(float(values.exp().mean()))
        return {"entropy": short(float(values.mean())), "rank": rank, "full": full}

    def gate(self, name: str, values: list[Tensor]) -> dict[str, Any]:
        """Describe a gate: the least, the middle and the largest over its copies and channels.

        What decays by g_1, g_2, ... decays as by their geometric mean; its half-life is the number
        of tokens after which half is left, None where nothing fades.
        """
        memory = self.kind.memory
        shape = values[0].shape[1:]
        stacked = torch.stack([v.expand(-1, *shape) for v in values]).flatten(0, 1)
        each = stacked.reshape(len(stacked), -1)
        found: dict[str, Any] = {"value": range_of(each.mean(0))}
        if " <- " not in name:
            logs = each.abs().log().mean(0)
            lives = torch.where(logs < 0, -math.log(2) / logs, math.inf) * memory.window
            found["half_life"] = range_of(lives)
        return found


class Watched:
    """Everything that a run of the interpreter shows: told of each token of each instance."""

    def __init__(self, system: System, length: int):
        self.kinds = kinds(system)
        self.length = length
        self.memories: dict[str, Seen] = {}
        self.streams: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, path: str, module: Block | Model, frame: TokenFrame) -> None:
        """Take in a token of an instance; the model itself has no name."""
        if isinstance(module, Model):
            outputs = {f"model.{n}": frame.streams[n] for n in _written(module.steps)}
            outputs.pop("model.logits", None)
        else:
            outputs = {f"{path}.{name}": frame.streams[name] for name, _ in module.outputs}
            for memory in module.memories:
                kind = self.kinds.get((module.name, memory.name))
                if kind is not None:
                    seen = self.memories.setdefault(
                        f"{path}.{memory.name}", Seen(kind, kind.sampled(self.length))
                    )
                    seen.token(frame)
        for name, value in outputs.items():
            if value.is_floating_point():
                self.streams.setdefault(name, []).append(value.detach().flatten(1))

    def activations(self) -> dict[str, Any]:
        """Describe what each instance gives: the spectrum of [rows and tokens, features]."""
        found = {}
        for name, values in self.streams.items():
            rows = max(value.shape[0] for value in values)
            matrix = torch.cat([value.expand(rows, -1) for value in values])
            if min(matrix.shape) < 2 or not bool(torch.isfinite(matrix).all()):
                continue
            singular = [short(float(s)) for s in singular_values(matrix)[:LARGEST]]
            found[name] = {"spectrum": spread(matrix), "singular": singular}
        return found


def _detached(states: States) -> States:
    """Cut states from the graph that a model which learns while it reads is made in."""
    return {
        var: {part: value.detach() for part, value in parts.items()}
        for var, parts in states.items()
    }


def inner_loss(memory: Memory, frame: TokenFrame) -> Tensor:
    """Return a memory's objective at this token, at its state before it, [rows, *lead]."""
    assert memory.objective is not None
    before = frame.states[memory.name, "prev"][""]
    named = {(memory.name, part): value for part, value in before.items()}
    inner = replace(frame, variables=named, gradients={}, remembered={})
    return evaluate(memory.objective, inner)


def label(memory: Memory, var: str, part: str = "") -> str:
    """Name a state, or a part of one: `M`, `M.S`, `M.layer1.weight`.

    The one matrix of a linear map needs no name of its own.
    """
    parts = [p.name for p in memory.variable(var).parts]
    return ".".join(word for word in (memory.name, var, part if len(parts) > 1 else "") if word)


def norm(parts: Iterable[Tensor], lead: int) -> float:
    """Return the Frobenius norm of all parts of a state, the mean over rows and copies."""
    squares = [value.square().reshape(*value.shape[: 1 + lead], -1).sum(-1) for value in parts]
    return float(torch.stack(squares).sum(0).sqrt().mean())


def range_of(values: Tensor) -> list[float | None]:
    """Give the least, the middle and the largest of some values."""
    ordered = values.flatten().sort().values
    return [number(float(ordered[i])) for i in (0, (len(ordered) - 1) // 2, -1)]


def _written(steps: tuple[Step, ...]) -> list[str]:
    """List the streams that have an equation, in order, each once."""
    found: dict[str, None] = {}
    for step in steps:
        match step:
            case Equation(name=name):
                found[name] = None
            case Repeat(steps=inner):
                found |= dict.fromkeys(_written(inner))
            case _:
                pass
    return list(found)


def _reduced(node: Expr, values: list[Tensor]) -> Tensor:
    """Reduce the values of a window's tokens as a node says."""
    match node.attr("how"):
        case "last":
            return values[-1]
        case "mean":
            return torch.stack(values).mean(0)
        case _:
            return torch.stack(values).sum(0)
