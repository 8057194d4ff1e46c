"""What a run of the interpreter carries, and the frame in which a token's values are found.

In: parameters by full name, a module, its streams and its state. Out: `Run`, and frames for
`evaluate`. Does not move any memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from nlc.ir.system import Block, Memory, Model, System
from nlc.runtime.evaluate import Kernel, States, TokenFrame
from nlc.runtime.layout import State

# told of every token of every instance: its full name, what it is an instance of, and its values
Watch = Callable[[str, Block | Model, TokenFrame], None]


@dataclass(frozen=True)
class Run:
    """One call of the interpreter: float64 parameters by full name, the number of rows.

    `path` is the full name of the instance that it is within, `watch` who is told of its tokens.
    """

    system: System
    parameters: Mapping[str, Tensor]
    rows: int
    tracks: bool
    path: str = ""
    watch: Watch | None = None

    def within(self, prefix: str) -> Run:
        """Return the same run as an instance sees it: its own parameters by their names in it."""
        own = {
            name.removeprefix(prefix): value
            for name, value in self.parameters.items()
            if name.startswith(prefix)
        }
        return replace(self, parameters=own, path=f"{self.path}{prefix}")


def make_frame(
    run: Run,
    position: int,
    states: dict[tuple[str, str], States],
    module: Block | Model | None = None,
    histories: Mapping[str, Tensor] | None = None,
) -> TokenFrame:
    """Make the frame of a token; without a module, one for values over the parameters alone."""
    inputs, memories = (module.inputs, module.memories) if isinstance(module, Block) else ((), ())
    return TokenFrame(
        rows=run.rows,
        position=position,
        parameters=run.parameters,
        streams={},
        defaults={i.name: i.default for i in inputs if i.default is not None},
        states=states,
        kernels={m.name: kernel_of(m) for m in memories if m.map.kind == "kernel"},
        histories=histories or {},
        remembered={},
        tracks=run.tracks,
    )


def kernel_of(memory: Memory) -> Kernel:
    """Return what a read of a softmax memory has to know of it."""
    width = memory.map.inputs[-1].size
    scale = memory.map.option("scale")
    window = memory.map.option("window")
    names = (f"{memory.name}.key", f"{memory.name}.value") if memory.persistent else None
    return Kernel(
        scale=float(str(scale)) if scale is not None else width**-0.5,
        window=None if window is None else int(str(window)) * len(memory.pairs),
        persistent=names,
    )


def frame_of(
    run: Run, module: Block | Model, streams: Mapping[str, Tensor], state: State
) -> TokenFrame:
    """Return a frame in which a value over the streams of a token can be evaluated."""
    # emitted code leaves out a past that no gradient turned out to depend on
    histories = {h.slot: state[h.slot] for h in module.histories if h.slot in state}
    frame = make_frame(run, int(state.get("position", 0)), {}, module, histories)
    frame.streams.update(streams)
    return frame
