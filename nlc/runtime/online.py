"""A model whose memories learn from the task while a sequence is read.

In: a run, the model, tokens and the model's state. Out: its streams token by token, and the state.
The whole sequence is one graph of autograd. When a level's window begins, its memories become
points of their own, in which everything that follows is differentiable; each token adds to the
losses of the windows it lies in when the next one is there; when a window ends, its loss is
differentiated in its points, and the memories move. An update that asks for the gradient at another
value has the window read once more, with all that ask together at their values. A state in the
middle of windows is taken up by reading again from where the slowest one began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nlc.ir.expr import Expr
from nlc.ir.online import (
    RECENT,
    goes_back,
    instances,
    online_levels,
    start_entry,
    waiting,
)
from nlc.ir.system import Block, Level, Memory, Model
from nlc.runtime.evaluate import evaluate
from nlc.runtime.frame import Run, frame_of
from nlc.runtime.layout import (
    State,
    facts,
    pack,
    read_states,
    unpack,
    write_states,
    write_window,
)
from nlc.runtime.mover import Mover, Point
from nlc.runtime.states import first_state, get, initial_state, put
from nlc.runtime.token import token
from nlc.runtime.windows import empty


@dataclass
class Window:
    """A window of one level: its points, its loss so far."""

    points: dict[Point, Tensor] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))


def begin(run: Run, model: Model) -> State:
    """Return the state of a model before the first token."""
    state = first_state(run, model)
    starts = {start_entry(lv.name): dict(state) for lv in online_levels(run.system, model)}
    return {**state, RECENT: torch.zeros(run.rows, 0, dtype=torch.int64), **starts}


def read(
    run: Run,
    model: Model,
    given: Mapping[str, Tensor],
    state: State,
    wanted: tuple[str, ...],
    also: Mapping[str, Expr],
) -> tuple[dict[str, list[Tensor]], State]:
    """Read tokens [B, T]; give the wanted streams of each, and the state after them."""
    with torch.enable_grad():
        reader = _Reader(replace(run, tracks=True), model, not run.tracks)
        results, state = reader.sequence(given, state, wanted, also)
    if not run.tracks:
        results = {name: [v.detach() for v in values] for name, values in results.items()}
        state = _detached(state)
    return results, state


class _Reader:
    """One call; `forgets` says that nothing outside asks for a gradient."""

    def __init__(self, run: Run, model: Model, forgets: bool):
        self.run, self.model, self.forgets = run, model, forgets
        self.levels = online_levels(run.system, model)
        self.windows = {level.name: Window() for level in self.levels}
        self.starts: dict[str, State] = {}
        # the tokens since the slowest window began
        self.recent = torch.zeros(run.rows, 0, dtype=torch.int64)

    def sequence(
        self,
        given: Mapping[str, Tensor],
        state: State,
        wanted: tuple[str, ...],
        also: Mapping[str, Expr],
    ) -> tuple[dict[str, list[Tensor]], State]:
        slowest = self.levels[-1]
        tokens, before = given["tokens"], state[RECENT]
        if tokens.shape[1] == 0:
            return {name: [] for name in wanted}, state
        whole = torch.cat([before.to("cpu"), tokens], dim=1)
        state = state[start_entry(slowest.name)]
        results: dict[str, list[Tensor]] = {name: [] for name in wanted}
        last: dict[str, Tensor] = {}
        for t in range(whole.shape[1]):
            position = int(state["position"])
            if last:
                self._add(last, whole[:, t], position - 1)
            state = self._between(state, position, whole[:, t] if last else None)
            if position % slowest.period.count == 0:
                self.recent = self.recent[:, :0]
            self.recent = torch.cat([self.recent, whole[:, t : t + 1]], dim=1)
            new = t - before.shape[1]
            inputs = {"tokens": whole[:, t]}
            if new >= 0:
                inputs |= {name: value[:, new] for name, value in given.items()}
            last, state = token(self.run, self.model, inputs, state, also if new >= 0 else {})
            for name, values in results.items() if new >= 0 else ():
                values.append(last[name].expand(self.run.rows, *last[name].shape[1:]))
        starts = {start_entry(name): start for name, start in self.starts.items()}
        return results, {**state, RECENT: self.recent, **starts}

    def _add(self, streams: Mapping[str, Tensor], target: Tensor, position: int) -> None:
        """Add a token's loss to the windows it lies in, now that its target is there."""
        now = {**streams, "targets": target}
        frame = frame_of(self.run, self.model, now, {"position": position})
        loss = evaluate(self.model.objective, frame).expand(self.run.rows).sum()
        for window in self.windows.values():
            window.loss = window.loss + loss

    def _between(
        self, state: State, position: int, target: Tensor | None, given: Sequence[Level] = ()
    ) -> State:
        """Do what happens between two tokens: updates, the faster first, resets, new windows.

        `target` is the token that comes, unless it is the first.
        """
        ends = [level for level in self.levels if position % level.period.count == 0]
        if target is not None:
            for level in ends:
                state = self._move(state, level, position, target)
            if ends and ends[-1] is self.levels[-1] and self.forgets:
                state = _detached(state)
        return self._begin(state, position, ends, given)

    def _begin(
        self, state: State, position: int, levels: Sequence[Level], given: Sequence[Level] = ()
    ) -> State:
        """Begin windows of some levels, and set back what goes back at this token.

        What learns at the `given` levels stays as it is.
        """
        begins, stays = ({level.name for level in some} for some in (levels, given))
        for level in levels:
            self.windows[level.name] = Window()
        state = dict(state)
        for path, block in instances(self.run.system, self.model.steps):
            own = get(state, path)
            # a copy is one of the points of its source
            for memory in waiting(block.memories):
                if memory.is_task and memory.level in stays:
                    continue
                if goes_back(block, memory, position):
                    own = _back(self.run.within(f"{path}."), block, memory, own)
                if memory.is_task and memory.level in begins:
                    own = self._open(path, memory, own)
            put(state, path, own)
        for level in levels:
            self.starts[level.name] = state
        return state

    def _open(self, path: str, memory: Memory, own: State) -> State:
        """Begin a window of a memory: it is a point of its own from here on."""
        window = self.windows[memory.level]
        parts = {}
        for part, value in unpack(memory, "", own[memory.name]).items():
            point = _point(value.expand(self.run.rows, *value.shape[1:]))
            window.points[path, memory.name, part] = parts[part] = point
        return {**own, memory.name: pack(parts)}

    def _move(self, state: State, level: Level, position: int, target: Tensor) -> State:
        """Move what lives at a level by the gradient of its window's loss."""
        window = self.windows[level.name]
        slopes = _slopes(window.loss, window.points)
        movers = [
            Mover(self.run, path, block, memory, get(state, path), slopes, position)
            for path, block in instances(self.run.system, self.model.steps)
            for memory in block.memories
            if memory.is_task and memory.level == level.name
        ]
        for turn in range(max((len(mover.asks) for mover in movers), default=0)):
            points = dict(window.points)
            for mover in movers:
                points |= mover.asked_at(turn)
            slopes = self._again(level, points, target)
            for mover in movers:
                mover.answer(turn, slopes)
        state = dict(state)
        for mover in movers:
            put(state, mover.path, mover.moved(get(state, mover.path)))
        return state

    def _again(
        self, level: Level, values: Mapping[Point, Tensor], target: Tensor
    ) -> dict[Point, Tensor]:
        """Read the last window of a level once more, with what learns there at other values."""
        reader = _Reader(replace(self.run, watch=None), self.model, forgets=False)
        place = self.levels.index(level)
        reader.levels, given = self.levels[:place], self.levels[place:]
        window = Window({name: _point(value) for name, value in values.items()})
        reader.windows = {level.name: window}
        state = self._put_in(self.starts[level.name], window.points)
        tokens, first = self.recent[:, -level.period.count :], int(state["position"])
        begin = [faster for faster in reader.levels if first % faster.period.count == 0]
        state = reader._begin(state, first, begin, given)
        streams: dict[str, Tensor] = {}
        for t in range(tokens.shape[1]):
            if streams:
                reader._add(streams, tokens[:, t], first + t - 1)
                state = reader._between(state, first + t, tokens[:, t], given)
            reader.recent = torch.cat([reader.recent, tokens[:, t : t + 1]], dim=1)
            streams, state = token(reader.run, self.model, {"tokens": tokens[:, t]}, state)
        reader._add(streams, target, first + tokens.shape[1] - 1)
        return _slopes(window.loss, window.points)

    def _put_in(self, state: State, points: Mapping[Point, Tensor]) -> State:
        """Give a state in which some memories have other values."""
        state = dict(state)
        for path, block in instances(self.run.system, self.model.steps):
            own = get(state, path)
            for memory in block.memories:
                parts = {
                    part: value
                    for (instance, name, part), value in points.items()
                    if (instance, name) == (path, memory.name)
                }
                if parts:
                    own = {**own, memory.name: pack(parts)}
            put(state, path, own)
        return state


def _point(value: Tensor) -> Tensor:
    """Make a value a point of its own."""
    point = value.clone()
    return point if point.requires_grad else point.requires_grad_()


def _slopes(loss: Tensor, points: Mapping[Point, Tensor]) -> dict[Point, Tensor]:
    """Differentiate a loss in points, of which it need not hang on any."""
    found: Any = [None] * len(points)
    if loss.requires_grad:
        found = torch.autograd.grad(
            loss, list(points.values()), create_graph=True, allow_unused=True
        )
    return {
        name: torch.zeros_like(point) if gradient is None else gradient
        for (name, point), gradient in zip(points.items(), found, strict=True)
    }


def _back(run: Run, block: Block, memory: Memory, own: State) -> State:
    """Give the state of an instance after one memory went back to its initial state."""
    present = {m.name: read_states(m, own) for m in block.memories}
    states = initial_state(run, block, memory, present)
    again = {**own, **write_states(memory, states), **write_window(memory, empty(memory, run.rows))}
    for word, names in (("start", facts(block).starts), ("initial", facts(block).copied)):
        if memory.name in names:
            again[f"{memory.name}.{word}"] = pack(states[""])
    return again


def _detached(value: Any) -> Any:
    """Cut a state from the graph that it was made in."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {name: _detached(inner) for name, inner in value.items()}
    return value
