"""The kernels that a spec would get: what `nlc explain SPEC --target triton` adds.

In: a system and an architecture. Out: for each memory its kernels with their launches, registers
and shared memory, or why it has none. Loads torch; compiles with triton where that is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nlc.cli.report import table
from nlc.ir.kernel import Emitted
from nlc.ir.system import System

if TYPE_CHECKING:
    from nlc.runtime.ahead import Resources


@dataclass(frozen=True)
class KernelsReport:
    """What was found; `plain` says why memories run as PyTorch, `missing` why nothing is told."""

    architecture: str
    kernels: tuple[Emitted, ...]
    resources: dict[str, Resources]
    plain: dict[str, str]
    missing: str = ""


def kernels_report(system: System, architecture: str) -> KernelsReport:
    """Emit the kernels and compile them ahead of time."""
    from nlc.compiled import compile_system

    found = compile_system(system, "triton").with_kernels
    plain = {".".join(name): why for name, why in found.plain.items()}
    missing = ""
    if find_spec("triton") is None:
        missing = "triton is not installed (pip install 'nlc[triton]')"
    elif os.environ.get("TRITON_INTERPRET", "") not in ("", "0"):
        missing = "TRITON_INTERPRET is set"
    resources = {}
    if not missing and found.kernels:
        from nlc.runtime.ahead import compile_ahead

        text = found.texts["kernels.py"]
        resources = {r.kernel: r for r in compile_ahead(text, found.kernels, architecture)}
    return KernelsReport(architecture, found.kernels, resources, plain, missing)


def kernels_text(report: KernelsReport) -> str:
    """Write the report for people."""
    lines = [f"kernels on {report.architecture}, streams in bfloat16"]
    if report.missing:
        lines.append(f"  registers and shared memory are not told: {report.missing}")
    for memory in dict.fromkeys(kernel.memory for kernel in report.kernels):
        own = [k for k in report.kernels if k.memory == memory]
        course = [k for k in own if k.role != "step"]
        forward = [k for k in course if not k.role.endswith("_back")]
        # the tiles are solved anew on the way back
        back = len(course) - len(forward) + any(k.role == "tiles" for k in own)
        told = f"{len(forward)} launches forward, {back} backward" if course else ""
        step = "1 launch for one token, without gradients" if len(own) > len(course) else ""
        lines += ["", f"  {memory}: {'; '.join(text for text in (told, step) if text)}"]
        lines += [f"    {line}" for line in table(list(_rows(report, own))).splitlines()]
    for name, why in report.plain.items():
        lines += ["", f"  {name}: none, {why}"]
    return "\n".join(lines) + "\n"


def _rows(report: KernelsReport, kernels: list[Emitted]) -> Iterator[list[str]]:
    yield ["kernel", "a program for", "warps", "registers", "spilled", "shared memory"]
    for kernel in kernels:
        each = "each sequence and copy" if kernel.loop or kernel.role == "step" else "each tile"
        found = report.resources.get(kernel.name)
        if found is None:
            yield [kernel.role, each, "", "", "", ""]
            continue
        numbers = [found.warps, found.registers, found.spilled, found.shared]
        yield [kernel.role, each, *map(str, numbers)]


def kernels_json(report: KernelsReport) -> dict[str, Any]:
    """Give the report for programs."""
    return {
        "architecture": report.architecture,
        "missing": report.missing or None,
        "plain": report.plain,
        "kernels": [
            {
                "name": k.name,
                "memory": k.memory,
                "role": k.role,
                "loop": k.loop,
                **_taken(report.resources.get(k.name)),
            }
            for k in report.kernels
        ],
    }


def _taken(found: Resources | None) -> dict[str, Any]:
    return {} if found is None else {**asdict(found), "faults": found.faults}
