"""Memories of one form share a class; what differs in anything has its own."""

from __future__ import annotations

import pytest

from nlc.compiled import compile_system
from tests.references.specs import block, resolve
from tests.unit.codegen.agree import agree

BODY = """
  weights W_g : linear(d -> heads, bias)
  g = sigmoid(W_g(x))
"""
MEMORY = """
  memory {name}[heads] : linear(d_k -> d_v) at fast {{
    key k
    value v
    update {{ self = {gate} * self - 0.3 * grad }}
    init {init}
  }}
"""
READ = "  out = W_o(A(q) + prev(B)(k) * sum(C(q), over = d_v))\n"


def body(gate: str, init: str) -> str:
    """Two memories of one form, and another."""
    alike = [MEMORY.format(name=name, gate="g", init="learned") for name in "AB"]
    return "".join([BODY, *alike, MEMORY.format(name="C", gate=gate, init=init), READ])


@pytest.mark.parametrize(
    ("gate", "init", "chunk", "classes"),
    [
        ("g", "learned", "", ["A, B, C"]),
        # at a chunk, `forward` reads, and B is read before its update
        ("g", "learned", "3", ["A, C"]),
        ("0.5 * g", "learned", "3", []),
        ("g", "zeros", "", ["A, B"]),
    ],
)
def test_what_is_alike_is_one_class(gate: str, init: str, chunk: str, classes: list[str]) -> None:
    compiled = agree(resolve(block(body(gate, init), chunk=chunk)), tokens=7)
    lines = compiled.files()["model.py"].splitlines()
    assert [x.strip()[7:] for x in lines if x.strip().startswith("names  ")] == classes
    module = compiled.block("mixer")
    for names in classes:
        alike = [getattr(module, name) for name in names.split(", ")]
        assert len({type(memory) for memory in alike}) == 1
        assert len({id(memory.weight) for memory in alike}) == len(alike)


def test_a_class_for_several_takes_no_name_of_the_block() -> None:
    taken = body("g", "zeros").replace("g = ", "M = ").replace("= g *", "= M *")
    text = agree(resolve(block(taken)), tokens=5).files()["model.py"]
    assert "Memory N: " in text and "names  A, B" in text


def test_memories_without_kernels_of_their_own_share_a_class_beside_kernels() -> None:
    system = resolve(block(body("g", "learned").replace("0.3 * grad", "0.3 * tanh(grad)")))
    compiled = compile_system(system, "triton")
    # one launch moves them all, so no class has a step of its own
    assert {kernel.role for kernel in compiled.with_kernels.kernels} == {
        "loop",
        "loop_back",
        "token",
    }
    assert "names  A, B, C" in compiled.source
    assert "kernels.steps" not in compiled.source.partition("class Mixer(")[0]
