"""Normal forms as equations: the systems of the literature, as their papers have them."""

from __future__ import annotations

from pathlib import Path

import pytest

import nlc
from nlc.ir.normal_form import Affine
from nlc.ir.show_form import form_lines
from nlc.ir.system import System
from nlc.passes.plan import plan
from tests.references.specs import block
from tests.references.systems import SYSTEMS

SPECS = Path(nlc.__file__).parents[1] / "specs"


def equations(system: System, block_name: str = "mixer", memory: str = "M") -> list[str]:
    found = plan(system).block(block_name).schedule(memory)
    own = system.block(block_name).memory(memory)
    lines = []
    for name, form in found.forms:
        assert isinstance(form, Affine)
        rank = len(next(p for p in own.map.parts if p.name == name).shape)
        lines += form_lines(form, memory, rank)
    return [f"{line.name} = {line.text}" for line in lines]


WRITTEN = {
    "linear attention": ["M' = M + v k^T"],
    "gla": ["M' = M @ diag(alpha) + v k^T"],
    "retnet": ["M' = gamma * M + v k^T"],
    "deltanet": ["M' = M + e kk^T", "e = beta * (v - M @ kk)"],
    "titans linear": [
        "M' = (1 - alpha) * M + eta * S + e unit(k)^T",
        "S' = eta * S + e unit(k)^T",
        "e = theta * (v - M @ unit(k))",
    ],
}


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_a_rule_is_written_as_its_paper_has_it(name: str) -> None:
    assert equations(nlc.parse(SYSTEMS[name][0])) == WRITTEN[name]


SHIPPED = {
    "gated_deltaproduct": [
        "S' = a * S + e1 k1^T + e2 k2^T",
        "e1 = b1 * (v1 - a * S @ k1)",
        "e2 = b2 * (v2 - a * S @ k2 - <k1, k2> * e1)",
    ],
    "gated_oja": ["S' = diag(alpha) @ S + v e^T", "e = beta * (k - S^T @ (alpha * v))"],
    "gdn2": ["S' = S @ diag(alpha) + e k^T", "e = w * v - S @ (alpha * e * k)"],
    "longhorn": ["S' = (1 - e * k^2) * S + e * v * k"],
    "mamba2": ["S' = a * S + step * v B^T"],
}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_specs_in_their_own_names(name: str) -> None:
    assert equations(nlc.load(SPECS / f"{name}.nl"), memory="S") == SHIPPED[name]


def one(update: str, map: str = "linear(d_k -> d_v)", more: str = "") -> list[str]:
    text = f"""{more}
  memory M[heads] : {map} at fast {{ update {{ {update} }} }}
  out = W_o(v)
"""
    return equations(nlc.parse(block(text)))


def test_signs_numbers_and_brackets() -> None:
    assert one("M = -0.5 * M - 2 * outer(v, k)") == ["M' = -0.5 * M - 2 * v k^T"]
    assert one("M = M - outer(v - M @ k, k)") == ["M' = M + e k^T", "e = M @ k - v"]
    assert one("M = M + outer(v * v, q * k)") == ["M' = M + (v * v) (q * k)^T"]
    assert one("M = M + 0.3 * outer(v - M @ k, k)")[1] == "e = 0.3 * (v - M @ k)"
    assert one("M = (1 - <k, k>) * M + outer(v, k)")[0] == "M' = (1 - ||k||^2) * M + v k^T"


def test_states_of_one_row_and_of_one_number() -> None:
    assert one("M = M - <M, q> * k", "vector(d_k)") == ["M' = M + e * k", "e = -<M, q>"]
    assert one("M = 0.9 * M + <k, q>", "scalar") == ["M' = 0.9 * M + <k, q>"]


def test_the_one_number_of_a_matrix_of_one_row_stands_as_its_vector() -> None:
    text = """system one
dims { d = 8 }
level fast every 1 token, chunk 4
block mixer(x[d], b) -> out {
  memory M : linear(d -> 1) at fast {
    key x
    objective -b * M(key)
    update { self = self - 0.1 * grad }
    init zeros
  }
  out = M(x)
}
"""
    assert equations(nlc.parse(text)) == ["M' = M + 0.1 * b x^T"]


def test_a_write_has_a_name_of_its_own() -> None:
    text = block("""
  e = unit(k)
  memory M[heads] : linear(d_k -> d_v) at fast { update { M = M + outer(v - M @ e, e) } }
  out = W_o(M(q))
""")
    system = nlc.parse(text)
    form = plan(system).block("mixer").schedule("M").forms[0][1]
    assert isinstance(form, Affine)
    lines = form_lines(form, "M", 2, taken={"e"})
    assert [f"{line.name} = {line.text}" for line in lines] == [
        "M' = M + err e^T", "err = v - M @ e",
    ]  # fmt: skip
