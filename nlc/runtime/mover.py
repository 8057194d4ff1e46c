"""A memory that learns from the task, at the end of its window.

In: the state of its instance and the gradient of the window's loss. Out: where it asks for this
gradient once more, and, when that is answered, its state after the update. Reads no window.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nlc.ir.online import asks, task_gradient
from nlc.ir.system import Block, Memory
from nlc.runtime import windows
from nlc.runtime.evaluate import evaluate_all
from nlc.runtime.frame import Run, make_frame
from nlc.runtime.layout import State, read_states, read_window, write_states, write_window
from nlc.runtime.maps import front
from nlc.runtime.token import since_reset

# what learns from a window: instance, memory, part
Point = tuple[str, str, str]


class Mover:
    """A memory of an instance that moves after `done` tokens; `slopes` are the first gradients."""

    def __init__(
        self,
        run: Run,
        path: str,
        block: Block,
        memory: Memory,
        own: State,
        slopes: Mapping[Point, Tensor],
        done: int,
    ):
        self.path, self.memory, self.asks = path, memory, asks(memory)
        run = run.within(f"{path}.")
        states = {(m.name, "prev"): read_states(m, own) for m in block.memories}
        states |= since_reset(run, block, own, states)
        # the last token of the window
        self.frame = make_frame(run, done - 1, states, block)
        self.frame.variables = {
            (task_gradient(memory.name), part.name): slopes[path, memory.name, part.name]
            for part in memory.map.parts
        }
        self.kept = windows.conclude(memory, self.frame, read_window(memory, own))

    def asked_at(self, turn: int) -> dict[Point, Tensor]:
        """Say where it asks for the gradient in this turn, if it does."""
        if turn >= len(self.asks):
            return {}
        _, points = self.asks[turn]
        found = {}
        values = evaluate_all(list(points.values()), self.frame)
        for part, value in zip(points, values, strict=True):
            old = self.frame.state(self.memory.name, "", part, "prev")
            found[self.path, self.memory.name, part] = front(value, old.dim() - 1).expand_as(old)
        return found

    def answer(self, turn: int, slopes: Mapping[Point, Tensor]) -> None:
        """Take in the gradient that it has asked for."""
        if turn < len(self.asks):
            index, points = self.asks[turn]
            self.frame.answers |= {
                (index, part): slopes[self.path, self.memory.name, part] for part in points
            }

    def moved(self, own: State) -> State:
        """Give the state of its instance after the update."""
        after = windows.move(self.memory, self.frame)
        return {
            **own,
            **write_states(self.memory, after),
            **write_window(self.memory, self.kept),
        }
