"""The emitted `kernels.py`: functions of the library, then each memory's kernels and operations.

In: the plans of all memories that have kernels. Out: Python text that imports torch and triton
only; the same for the same spec.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nlc.codegen.library_source import needed
from nlc.codegen.triton.launch import Launcher
from nlc.codegen.triton.layer_launch import LayerLauncher
from nlc.codegen.triton.layer_plan import LayerPlan
from nlc.codegen.triton.loop_launch import write_loop
from nlc.codegen.triton.loop_plan import LoopPlan
from nlc.codegen.triton.plan import KernelPlan
from nlc.codegen.triton.step_call import StepPlan
from nlc.codegen.triton.table import (
    OF_LAYERS,
    OF_SLICES,
    Row,
    block_sizes,
    layer_sizes,
    layer_tokens,
    power_of_two,
    slice_sizes,
)
from nlc.codegen.triton.token_launch import StepLaunch
from nlc.codegen.triton.window_call import WindowPlan
from nlc.codegen.triton.window_launch import write_launch
from nlc.codegen.writer import Writer

from nlc.ir.kernel import Emitted

HOST = (
    "Blocks", "Course", "Launch", "architecture", "as_copies", "dot_type", "each_token", "front_of",
    "in_rows", "over_pieces", "read_pieces", "spread", "steps", "takes", "up",
)  # fmt: skip


def emit_kernels(
    plans: Sequence[tuple[KernelPlan | LayerPlan, Sequence[str]]],
    steps: Sequence[tuple[StepPlan, Sequence[str]]],
    loops: Sequence[tuple[LoopPlan, Sequence[str]]],
    windows: Sequence[tuple[WindowPlan, Sequence[str]]],
    spec: str,
    system: str,
) -> tuple[str, tuple[Emitted, ...]]:
    """Return the text of `kernels.py` and its kernels; each plan has the lines of its update."""
    used: set[str] = set()
    texts: list[str] = []
    made: list[Emitted] = []
    for plan, about in plans:
        texts.append(_memory(plan, about, used, made))
    for step, about in steps:
        texts.append(_apart(StepLaunch(step.loop, list(about), DIGEST).write(made)))
    for loop, about in loops:
        texts.append(_apart(write_loop(loop, about, DIGEST, made)))
    for window, about in windows:
        for launch in window.launches:
            texts.append(_apart(write_launch(launch, about, DIGEST, made)))
    out = Writer()
    out.docstring([
        f"{system}: kernels of its memories",
        f"Made by nlc from {spec}. It imports torch and triton only; change it as you like.",
    ])  # fmt: skip
    out.blank()
    for line in (
        "from __future__ import annotations", "", "import os", "from typing import Any, NamedTuple",
        "", "import torch", "import triton", "import triton.language as tl",
        "from torch import Tensor", "", "# whether kernels run without a GPU, token by token",
        'INTERPRETED = os.environ.get("TRITON_INTERPRET", "") not in ("", "0")',
    ):  # fmt: skip
        out.line(line)
    out.blank(2)
    library = needed("library_launch", HOST)
    if any(isinstance(plan, LayerPlan) for plan, _ in plans):
        library += needed("library_layers", LAYERS)
    library += needed("library_triton", sorted(used))
    body = "\n\n\n".join(t.strip("\n") for t in [*library, *texts]) + "\n"
    return out.text() + body, tuple(made)


LAYERS = (
    "LayerCourse", "LayerLaunch", "at_end", "at_open", "each_copy", "joined", "last_back",
    "layer_pieces", "read_layer_pieces",
)  # fmt: skip


def _memory(
    plan: KernelPlan | LayerPlan, about: Sequence[str], used: set[str], found: list[Emitted]
) -> str:
    """The kernels of one memory."""
    body = Writer()
    if isinstance(plan, LayerPlan):
        reads, told = list(plan.reads), list(about)
        launcher = LayerLauncher(
            plan.name, plan.layers, plan.variables, plan.start, reads, told, DIGEST, used
        )
        launcher.write(body)
        layers = plan.layers
        walked = bool(layers.walked)
        found += [
            replace(
                kernel,
                gates=OF_SLICES if walked else OF_LAYERS,
                tile=layer_tokens(layers.memory.chunk, layers.longest),
                size=power_of_two(layers.channels if walked else layers.entries),
                channels=(1, 1),
            )
            for kernel in launcher.made
        ]
        return _table(_layer_sizes(plan), launcher.table) + _apart(body.text())
    made = Launcher(plan.name, plan.solve, list(plan.reads), list(about), DIGEST, used)
    made.write(body)
    found += made.made
    sizes = plan.solve.sizes
    rows = block_sizes(plan.solve.keeping, sizes["K"], sizes["V"])
    return _table(rows, made.table) + _apart(body.text())


def _layer_sizes(plan: LayerPlan) -> dict[str, Row]:
    layers = plan.layers
    if not layers.walked:
        return layer_sizes(layers.memory.chunk, layers.entries, layers.longest)
    return slice_sizes(layers.memory.chunk, layers.channels, layers.longest)


def _apart(text: str) -> str:
    """Two packages may have a memory of the same name: keep their operations apart."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text.replace(DIGEST, f"nlc_{digest}")


DIGEST = "nlc_kernels"


def _table(rows: Mapping[str, tuple[int, ...]], name: str) -> str:
    """The block sizes of one memory."""
    out = Writer()
    out.line(f"{name} = {{")
    for machine, row in rows.items():
        out.line(f'    "{machine}": Blocks{row},')
    out.line("}")
    out.blank(2)
    return out.text()
