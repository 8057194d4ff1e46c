"""The reference interpreter: what a system computes, by running it token by token in float64.

In: a system, the parameters of its model or of one block, and sequences. Out: the outputs and the
state, laid out as the emitted modules lay out theirs, differentiable in parameters, inputs and
incoming states. It takes no shortcut and shares nothing with the passes or the emitters. It is
slow; it refuses nothing itself: what it cannot run is refused before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nlc.ir.expr import Expr
from nlc.ir.online import online_levels
from nlc.ir.shape import Shape, sizes
from nlc.ir.system import Block, Input, Model, System
from nlc.runtime import online
from nlc.runtime.frame import Run, Watch
from nlc.runtime.layout import State, double, parameters
from nlc.runtime.states import first_state
from nlc.runtime.token import NOTHING, token


class Reference:
    """A block, or the model, of a system over given parameters.

    `parameters` are by name, as `dict(module.named_parameters())` gives them; they are read anew
    at each call.
    """

    def __init__(
        self, system: System, parameters: Mapping[str, Tensor], block: str | None = None
    ) -> None:
        self.system = system
        self.parameters = parameters
        self.module = module_of(system, block)

    def __call__(
        self, *streams: Any, state: State | None = None, **named: Tensor
    ) -> tuple[Any, State]:
        """Run a sequence: streams [B, T, *shape] by order or name -> (outputs, state).

        A model takes tokens [B, T] and gives logits [B, T, vocab]; a block gives a tensor, or a
        tuple where it has several outputs. A state may also come last among the streams.
        """
        given, state = self._inputs(streams, state, named)
        results, state = self._sequence(given, state, self._outputs())
        outputs = [
            torch.stack(values, dim=1) if values else self._empty(name, given)
            for name, values in results.items()
        ]
        return (outputs[0] if len(outputs) == 1 else tuple(outputs)), state

    def step(self, *streams: Any, state: State | None = None, **named: Tensor) -> tuple[Any, State]:
        """Run one token: streams [B, *shape]; without a state it is the first one."""
        given, state = self._inputs(streams, state, named)
        once = {name: value[:, None] for name, value in given.items()}
        results, state = self._sequence(once, state, self._outputs())
        outputs = [values[0] for values in results.values()]
        return (outputs[0] if len(outputs) == 1 else tuple(outputs)), state

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the model's objective: the mean over batch and tokens."""
        if not isinstance(self.module, Model):
            raise TypeError("a block has no loss; the model does")
        given = {"tokens": tokens, "targets": targets}
        name = "the loss"
        results, _ = self._sequence(given, None, (name,), {name: self.module.objective})
        return torch.stack(results[name], dim=1).mean()

    @torch.no_grad()
    def observe(self, tokens: Tensor, targets: Tensor, watch: Watch) -> Tensor:
        """Run the model and tell `watch` of every token; return its objective, [B, T]."""
        if not isinstance(self.module, Model):
            raise TypeError("a block has no loss; the model does")
        given, name = {"tokens": tokens, "targets": targets}, "the loss"
        also = {name: self.module.objective}
        results, _ = self._sequence(given, None, (name,), also, watch)
        return torch.stack(results[name], dim=1)

    def first_state(self, rows: int) -> State:
        """Return the state before the first token, for a batch of `rows`."""
        return self._first(self._run(rows, ()))

    @property
    def adapts(self) -> bool:
        """Say whether the model learns from the task while it reads; a block alone has no task."""
        return isinstance(self.module, Model) and bool(online_levels(self.system, self.module))

    def _first(self, run: Run) -> State:
        if self.adapts:
            assert isinstance(self.module, Model)
            return online.begin(run, self.module)
        return first_state(run, self.module)

    def _run(self, rows: int, others: tuple[Any, ...]) -> Run:
        values = {p.name: p for p in parameters(self.system, self.module)}
        missing = sorted(set(values) - set(self.parameters))
        if missing:
            raise ValueError(f"no values for the parameters {', '.join(missing)}")
        own = {name: double(self.parameters[name]) for name in values}
        for name, value in own.items():
            if value.shape != sizes(values[name].shape):
                wanted = list(sizes(values[name].shape))
                raise ValueError(f"{name} has shape {list(value.shape)}, not {wanted}")
        asks = any(t.requires_grad for t in (*own.values(), *_leaves(others)))
        return Run(self.system, own, rows, tracks=asks and torch.is_grad_enabled())

    def _sequence(
        self,
        given: dict[str, Tensor],
        state: State | None,
        wanted: tuple[str, ...],
        also: Mapping[str, Expr] = NOTHING,
        watch: Watch | None = None,
    ) -> tuple[dict[str, list[Tensor]], State]:
        """Run all tokens; `wanted` are names of streams or of the values in `also`."""
        rows, length = next(iter(given.values())).shape[:2]
        run = replace(self._run(rows, (given, state)), watch=watch)
        state = self._first(run) if state is None else state
        if self.adapts:
            assert isinstance(self.module, Model)
            return online.read(run, self.module, given, state, wanted, also)
        results: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for t in range(length):
            inputs = {name: value[:, t] for name, value in given.items()}
            streams, state = token(run, self.module, inputs, state, also)
            for name, values in results.items():
                values.append(streams[name].expand(rows, *streams[name].shape[1:]))
        return results, state

    def _outputs(self) -> tuple[str, ...]:
        match self.module:
            case Block(outputs=outputs):
                return tuple(name for name, _ in outputs)
            case Model():
                return ("logits",)

    def _empty(self, name: str, given: dict[str, Tensor]) -> Tensor:
        match self.module:
            case Block(outputs=outputs):
                shape = sizes(dict(outputs)[name])
            case Model(vocab=vocab):
                shape = (vocab,)
        rows = next(iter(given.values())).shape[0]
        return torch.zeros(rows, 0, *shape, dtype=torch.float64)

    def _inputs(
        self, streams: tuple[Any, ...], state: State | None, named: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], State | None]:
        """Match what a call gives with the module's inputs; each [B, ..., *shape]."""
        if streams and (streams[-1] is None or isinstance(streams[-1], Mapping)):
            *streams, state = streams  # type: ignore[assignment]
        declared = inputs_of(self.module)
        names = [entry.name for entry in declared]
        given = dict(zip(names, streams, strict=False)) | named
        unknown = sorted(set(named) - set(names))
        if len(streams) > len(names) or unknown:
            raise TypeError(f"the inputs are {', '.join(names)}")
        found: dict[str, Tensor] = {}
        for entry in declared:
            value = given.get(entry.name)
            if value is not None:
                found[entry.name] = _as_stream(entry, value)
            elif entry.default is None:
                raise TypeError(f"the input {entry.name} is missing")
        return found, state


def inputs_of(module: Block | Model) -> tuple[Input, ...]:
    """Return the inputs of a block; a model has one, its tokens."""
    return module.inputs if isinstance(module, Block) else (Input("tokens", (), integer=True),)


def module_of(system: System, block: str | None) -> Block | Model:
    """Return a block by name, or the model."""
    if block is not None:
        return system.block(block)
    if system.model is None:
        raise ValueError("this system has no model: name one of its blocks")
    return system.model


def _as_stream(entry: Input, value: Tensor) -> Tensor:
    _check(entry.name, entry.shape, value)
    return value.to("cpu") if entry.integer else double(value)


def _check(name: str, shape: Shape, value: Tensor) -> None:
    wanted = sizes(shape)
    if value.shape[value.dim() - len(wanted) :] != wanted:
        raise ValueError(f"{name} has shape {list(value.shape)}, not [..., {wanted}]")


def _leaves(value: Any) -> list[Tensor]:
    """List the tensors in nested dicts and tuples."""
    found: list[Tensor] = []
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, Tensor):
            found.append(entry)
        elif isinstance(entry, Mapping):
            waiting.extend(entry.values())
        elif isinstance(entry, tuple):
            waiting.extend(entry)
    return found
