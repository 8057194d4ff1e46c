"""The kernels that a spec would get: what `nlc explain SPEC --target triton` adds.

In: a system and an architecture. Out: for each memory its kernels with their launches, registers
and shared memory, or why it has none. Loads torch; compiles with triton where that is installed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from textwrap import fill
from typing import TYPE_CHECKING, Any

from nlc.cli.report import table
from nlc.ir.kernel import Emitted
from nlc.ir.system import System

if TYPE_CHECKING:
    from nlc.runtime.ahead import Resources


@dataclass(frozen=True)
class KernelsReport:
    """What was found; `plain` says why memories run as PyTorch, `missing` why nothing is told.

    `steps` are the kernels of optimizers; `refused` says why the package has no kernels at all.
    """

    architecture: str
    kernels: tuple[Emitted, ...]
    resources: dict[str, Resources]
    plain: dict[str, str]
    missing: str = ""
    steps: tuple[str, ...] = ()
    refused: str = ""


def kernels_report(system: System, architecture: str) -> KernelsReport:
    """Emit the kernels and compile them ahead of time."""
    from nlc.compiled import compile_system

    compiled = compile_system(system, "triton")
    found, optimizers = compiled.with_kernels, compiled.optimizers_source
    plain = {".".join(name): why for name, why in found.plain.items()}
    if refused := compiled.kernels_refused:
        return KernelsReport(architecture, (), {}, plain, refused=refused)
    missing = ""
    if find_spec("triton") is None:
        missing = "triton is not installed (pip install 'nlc[triton]')"
    elif os.environ.get("TRITON_INTERPRET", "") not in ("", "0"):
        missing = "TRITON_INTERPRET is set"
    resources = {}
    if not missing:
        from nlc.runtime.ahead import compile_ahead, compile_steps

        text = found.texts.get("kernels.py", "")
        resources = {r.kernel: r for r in compile_ahead(text, found.kernels, architecture)}
        resources |= {r.kernel: r for r, _ in compile_steps(optimizers, architecture)}
    steps = tuple(re.findall(r"^def (\w+_kernel)\(", optimizers, re.MULTILINE))
    return KernelsReport(architecture, found.kernels, resources, plain, missing, steps)


def no_kernels(why: str) -> str:
    """Say in one line that a package has no kernels, and why."""
    return f"no kernels are written, the package runs as PyTorch: {why}"


def kernels_text(report: KernelsReport) -> str:
    """Write the report for people."""
    if report.refused:
        return fill(no_kernels(report.refused), 100, subsequent_indent="  ") + "\n"
    lines = [f"kernels on {report.architecture}, streams in bfloat16"]
    if report.missing:
        lines.append(f"  registers and shared memory are not told: {report.missing}")
    for memory in dict.fromkeys(kernel.memory for kernel in report.kernels):
        own = [k for k in report.kernels if k.memory == memory]
        ends = [k for k in own if k.role.startswith("update")]
        course = [k for k in own if k.role not in ONE_TOKEN and k not in ends]
        forward = [k for k in course if not k.role.endswith("_back")]
        # the tiles are solved anew on the way back
        back = len(course) - len(forward) + any(k.role == "tiles" for k in own)
        told = [f"{_launches(len(forward))} forward, {back} backward"] if course else []
        if len(own) > len(course) + len(ends):
            told.append("1 launch for one token, without gradients")
        if ends:
            both = sum(k.role.endswith("_back") for k in ends)
            told.append(f"{_launches(len(ends) - both)} where a window ends, {both} backward")
        lines += ["", f"  {memory}: {'; '.join(told)}"]
        lines += [f"    {line}" for line in _sliced(own)]
        lines += [f"    {line}" for line in table(list(_rows(report, own))).splitlines()]
    for name, why in report.plain.items():
        lines += ["", f"  {name}: none, {why}"]
    if report.steps:
        lines += ["", "  optimizers: a launch of each for all parameters"]
        rows = [HEAD, *(_row(report, name, name, "2048 entries") for name in report.steps)]
        lines += [f"    {line}" for line in table(rows).splitlines()]
    return "\n".join(lines) + "\n"


def _sliced(kernels: list[Emitted]) -> Iterator[str]:
    """Say which widths are walked, how many channels at a time."""
    sliced = dict.fromkeys(each for kernel in kernels for each in kernel.sliced)
    for size in dict.fromkeys(size for size, _ in sliced):
        widths = " or ".join(str(width) for found, width in sliced if found == size)
        yield f"a hidden layer of {size} is walked {widths} channels at a time"


ONE_TOKEN = ("step", "token")


def _launches(count: int) -> str:
    return f"{count} launch" if count == 1 else f"{count} launches"


HEAD = ["kernel", "a program for", "warps", "registers", "spilled", "shared memory"]


def _rows(report: KernelsReport, kernels: list[Emitted]) -> Iterator[list[str]]:
    yield HEAD
    for kernel in kernels:
        whole = kernel.loop or kernel.walks or kernel.role in ONE_TOKEN
        each = "each sequence and copy" if whole else "each tile"
        each = "some rows of each copy" if kernel.role.startswith("update") else each
        yield _row(report, kernel.name, kernel.role, each)


def _row(report: KernelsReport, name: str, role: str, each: str) -> list[str]:
    found = report.resources.get(name)
    if found is None:
        return [role, each, "", "", "", ""]
    numbers = [found.warps, found.registers, found.spilled, found.shared]
    return [role, each, *map(str, numbers)]


def kernels_json(report: KernelsReport) -> dict[str, Any]:
    """Give the report for programs."""
    return {
        "architecture": report.architecture,
        "missing": report.missing or None,
        "refused": report.refused or None,
        "plain": report.plain,
        "kernels": [
            {
                "name": k.name,
                "memory": k.memory,
                "role": k.role,
                "loop": k.loop,
                "sliced": [list(each) for each in k.sliced],
                **_taken(report.resources.get(k.name)),
            }
            for k in report.kernels
        ],
        "optimizers": [
            {"name": name, **_taken(report.resources.get(name))} for name in report.steps
        ],
    }


def _taken(found: Resources | None) -> dict[str, Any]:
    return {} if found is None else {**asdict(found), "faults": found.faults}
