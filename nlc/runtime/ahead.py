"""Compile kernels ahead of time, without a GPU: what they take of a machine.

In: the text of a `kernels.py` and what is known of its kernels. Out: `Resources` of each on one
architecture. Needs triton, in a process that does not interpret; nothing of a kernel is run.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlc.ir.kernel import Emitted
from nlc.runtime.load import load_module

# what a program may have: shared memory in bytes (tensor memory of sm_100 has 512 columns)
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
TENSOR = 512
MATRIX = r"\bmma\.sync|wgmma\.mma|tcgen05\.mma|v_mfma"


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers of a thread, bytes spilled, bytes of shared memory."""

    kernel: str
    architecture: str
    warps: int
    registers: int
    spilled: int
    shared: int
    tensor: int
    products: bool
    trap: bool

    @property
    def faults(self) -> list[str]:
        """Why it could not be launched, or is not what it should be."""
        found = []
        if self.shared > SHARED[self.architecture]:
            found.append(f"{self.shared} bytes of shared memory")
        if self.tensor > TENSOR:
            found.append(f"{self.tensor} columns of tensor memory")
        if self.trap:
            found.append("a body that only traps")
        if not self.products:
            found.append("no matrix instruction where there is a product")
        return found


def compile_ahead(
    text: str, kernels: Iterable[Emitted], architecture: str, narrow: str = "bf16"
) -> Iterator[Resources]:
    """Compile every kernel, with streams of a narrow type, for one architecture."""
    module = load_module(text, "kernels")
    for kernel in kernels:
        yield _compile(module, kernel, architecture, narrow)


def compile_steps(
    text: str, architecture: str, narrow: str = "bf16"
) -> Iterator[tuple[Resources, str]]:
    """Compile the kernels of optimizers, with parameters of a narrow type; give their assembly too.

    Sizes and addresses are even, as those of nearly all tensors are.
    """
    module = load_module(text, "steps")
    for name, function in vars(module).items():
        if name.endswith("_kernel") and "EVEN" in getattr(function, "arg_names", ()):
            yield _compile_step(function, name, module.BLOCK, architecture, narrow)


def _compile_step(
    function: Any, name: str, block: int, architecture: str, narrow: str
) -> tuple[Resources, str]:
    import triton
    import triton.language as tl
    from triton.compiler import ASTSource

    kinds = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
    constants: dict[str, Any] = {"EVEN": True, "BLOCK": block}
    for word in function.arg_names:
        if word.endswith("_type"):
            constants[word] = kinds[narrow if word in ("w_type", "grad_type") else "fp32"]
    signature = {"table": "*i64", "chunks": "*i64", "count": "i32"}
    for word in function.arg_names[3:]:
        signature[word] = "constexpr" if word in constants else "fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(2)}
    target, amd = _target(architecture)
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned),
        target=target,
        options={"num_warps": 4},
    )
    assembly = made.asm["amdgcn" if amd else "ptx"]
    registers, spilled = _amd(assembly) if amd else _nvidia(made.asm["cubin"])
    shared, trap = int(made.metadata.shared), "unreachable" in made.asm["llir"]
    found = Resources(name, architecture, 4, registers, spilled, shared, 0, True, trap)
    return found, assembly


def _target(architecture: str) -> tuple[Any, bool]:
    """What triton compiles for, and whether AMD makes it."""
    from triton.backends.compiler import GPUTarget

    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64), True
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32), False


def _compile(module: Any, kernel: Emitted, architecture: str, narrow: str) -> Resources:
    import triton
    import triton.language as tl
    from triton.compiler import ASTSource

    function = getattr(module, kernel.name)
    blocks = getattr(module, kernel.table)[architecture]
    d_k, d_v = kernel.d_k, kernel.d_v
    V = min(module.up(d_v), blocks.channels) if kernel.loop or kernel.cut else module.up(d_v)
    dot = {"bf16": tl.bfloat16, "fp16": tl.float16}.get(narrow, tl.float32)
    constants = {
        "d_k": d_k, "d_v": d_v, "C": blocks.tokens, "K": module.up(d_k), "V": V,
        "DOT": dot, "PRECISION": "tf32", "E": blocks.channels,
    }  # fmt: skip
    if kernel.walks:
        constants |= {"V": blocks.channels, "KEEP": True}
    constants = {k: v for k, v in constants.items() if k in function.arg_names}
    signature = {}
    for word in function.arg_names:
        tensor = word.removesuffix("_ptr")
        if word.endswith("_ptr"):
            signature[word] = f"*{narrow if tensor in kernel.narrow else 'fp32'}"
        else:
            signature[word] = "constexpr" if word in constants else "i32"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, word in enumerate(function.arg_names)
        if word.endswith("_ptr")
    }
    target, amd = _target(architecture)
    warps = blocks.loop_warps if kernel.loop else blocks.warps
    made = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned),
        target=target,
        options={"num_warps": warps, "num_stages": blocks.stages},
    )
    assembly = made.asm["amdgcn" if amd else "ptx"]
    registers, spilled = _amd(assembly) if amd else _nvidia(made.asm["cubin"])
    # a product that must be exact in float32 has no such instruction
    multiplies = re.search(r"tt\.dot [^\n]*(tf32|bf16|f16)", made.asm["ttir"]) is not None
    return Resources(
        kernel.name,
        architecture,
        warps,
        registers,
        spilled,
        int(made.metadata.shared),
        int(getattr(made.metadata, "tmem_size", 0) or 0),
        not multiplies or re.search(MATRIX, assembly) is not None,
        "unreachable" in made.asm["llir"],
    )


def _amd(assembly: str) -> tuple[int, int]:
    """Registers, and bytes of those that are spilled."""
    count = {
        word: int(re.search(rf"\.{word}:\s*(\d+)", assembly)[1])  # type: ignore[index]
        for word in ("vgpr_count", "vgpr_spill_count")
    }
    return count["vgpr_count"], 4 * count["vgpr_spill_count"]


def _nvidia(binary: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack, as the binary says."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(binary)
    try:
        done = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    finally:
        os.unlink(file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    assert found is not None, done.stdout
    return int(found[1]), int(found[2])
