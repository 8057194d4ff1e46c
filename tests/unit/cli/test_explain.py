"""What `nlc explain SPEC` tells: update, normal form, schedule, what would be faster, cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlc
from nlc.cli.common import shipped
from nlc.cli.kernels_report import kernels_report, kernels_text
from tests.references.specs import block
from tests.references.systems import SYSTEMS

Call = Callable[..., Any]


def said(text: str) -> list[str]:
    """The lines of a page, with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def page(call: Call, text: str) -> list[str]:
    Path("small.nl").write_text(text)
    answer = call("explain", "small.nl")
    assert (answer.status, answer.err) == (0, "")
    return said(answer.out)


def in_order(lines: list[str], *wanted: str) -> None:
    """Each wanted line stands after the one before it."""
    at = 0
    for line in wanted:
        assert line in lines[at:], f"{line!r} not in {lines[at:]}"
        at = lines.index(line, at) + 1


def test_a_page_from_levels_to_cost(call: Call) -> None:
    answer = call("explain", "gated_deltanet")
    lines = said(answer.out)
    assert answer.status == 0 and lines[0].startswith("gated_deltanet: Gated DeltaNet")
    in_order(
        lines,
        "memory S of mixer, at fast: every 1 token",
        "objective 1/2 * ||S(k) - v||^2",
        "update S = a * S",
        "S = S - beta * grad(at = S)",
        "normal form S' = a * S + e k^T",
        "e = beta * (v - a * S @ k)",
        "schedule tile-solve, 32 tokens at a time: affine in its state, which its writes read",
    )
    levels = next(i for i, line in enumerate(lines) if line.startswith("fast every 1 token"))
    assert levels < lines.index("memory S of mixer, at fast: every 1 token")
    assert any(
        line.startswith("cost FLOPs ") and "state 128.0 KiB; 4 copies" in line for line in lines
    )
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("cost of a token")) :]
    assert [line.split()[0] for line in table[2:]] == ["fast", "slow", "equations", "all"]
    assert max(map(len, answer.out.splitlines())) <= 100


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_spec_has_a_page_and_the_same_as_data(call: Call, name: str) -> None:
    answer = call("explain", name)
    assert answer.status == 0 and "..." not in answer.out.split("memory ")[-1].split("cost")[0]
    told = json.loads(call("explain", name, "--format", "json").out)
    assert set(told) == {"file", "system", "about", "levels", "memories", "cost"}
    for memory in told["memories"]:
        assert f"memory {memory['name']} of {memory['block']}" in answer.out
        assert memory["schedule"]["kind"] in answer.out


def test_maps_with_layers_have_short_names_for_what_is_repeated(call: Call) -> None:
    in_order(
        said(call("explain", "titans_lmm").out),
        "normal form M.layer1' = (1 - alpha) * M.layer1 + eta * S.layer1 + e k^T",
        "e = -theta * start(M.layer2)^T @ h2 * gelu'(h1)",
        "normal form M.layer2' = (1 - alpha) * M.layer2 + eta * S.layer2 - theta * h2 gelu(h1)^T",
        "where h1 = start(M.layer1) @ k",
        "h2 = start(M.layer2) @ gelu(h1) - v",
        "frozen grad: taken before each chunk of 16",
    )


def test_gates_by_channel_are_told(call: Call) -> None:
    lines = page(call, SYSTEMS["rwkv7"][0])
    assert "gates factored: |log w| <= 0.607, 19.4 over 32 tokens" in lines


def test_what_keeps_it_from_a_faster_form_with_place_and_remedy(call: Call) -> None:
    text = block("""
  memory M[heads] : linear(d_k -> d_v) at fast {
    update { M = tanh(0.9 * M + outer(v, k)) }
  }
  out = W_o(M(q))
""")
    number = next(i for i, s in enumerate(text.splitlines(), 1) if "tanh" in s)
    in_order(
        page(call, text),
        "normal form none: `tanh` of the running state is not linear in it",
        "schedule sequential, one token after another",
        f"at small.nl:{number}:18 update {{ M = tanh(0.9 * M + outer(v, k)) }}",
        "faster apply `tanh` to what is read, not to the state",
    )


HUBER = """
  memory M : linear(d_k -> d_v) at fast {
    key k
    value v
    objective huber(M(key) - value, 0.3)
    update sgd(lr = 0.1)
  }
  out = W_o(M(q))
"""


def test_a_chunk_is_advised_where_it_helps_and_only_there(call: Call) -> None:
    lines = page(call, block(HUBER))
    advice = "or `chunk 16` on the level `fast` runs it as tile-scan: gradients and reads in its"
    assert advice in lines
    told = json.loads(call("explain", "small.nl", "--format", "json").out)
    assert any("chunk 16" in hint for hint in told["memories"][0]["schedule"]["faster"])
    answer = call("explain", "small.nl", "--set", "levels.fast.chunk=16")
    assert "tile-scan, 16 tokens at a time" in answer.out and "chunk 16` on" not in answer.out
    bare = block(HUBER.replace("sgd(lr = 0.1)", "{ M = tanh(M - 0.1 * grad) }"))
    assert not any("chunk 16" in line for line in page(call, bare))


def test_a_rule_is_shown_without_its_idle_defaults(call: Call) -> None:
    assert "update self = self - beta * grad" in said(call("explain", "deltanet").out)


def test_softmax_memories_tell_their_pairs(call: Call) -> None:
    lines = said(call("explain", "sliding_window").out)
    in_order(
        lines,
        "pairs rope(W_k(x)) -> W_v(x), of the last 64 tokens",
        "schedule attention: every query attends to the stored pairs",
    )


def test_what_cannot_run_yet_is_said(call: Call) -> None:
    lines = page(call, block(HUBER.replace("at fast", "at slow")))
    assert any(s.startswith("cannot run yet: memory `M` with its own objective") for s in lines)
    assert json.loads(call("explain", "small.nl", "--format", "json").out)["cost"] is None


def test_codes_as_data_and_wrong_calls(call: Call) -> None:
    found = json.loads(call("explain", "NL0203", "--format", "json").out)
    assert found["code"] == "NL0203" and found["wrong"] != found["right"]
    assert call("explain", "deltanet", "--format", "github").status == 2
    Path("bad.nl").write_text("system bad\nlevel fast every 0 tokens\n")
    wrong = call("explain", "bad.nl", "--format", "json")
    assert wrong.status == 1 and json.loads(wrong.out)["diagnostics"]


def test_explain_loads_no_torch() -> None:
    code = (
        "import sys; from nlc.cli import main; sys.argv = ['nlc', 'explain', 'titans_lmm']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'triton') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_kernels_are_told_of_with_the_target_that_writes_them(call: Call) -> None:
    answer = call("explain", "memora", "--target", "triton", "--arch", "gfx942")
    assert answer.status == 0
    lines = said(answer.out)
    in_order(lines, "kernels on gfx942, streams in bfloat16")
    assert any(line.startswith("mixer.M: none,") for line in lines)
    answer = call("explain", "memora", "--target", "triton", "--format", "json")
    found = json.loads(answer.out)["kernels"]
    assert found["architecture"] == "sm_90"
    (token,) = found["kernels"]
    assert token["role"] == "token" and token["faults"] == [] and token["registers"] > 0
    assert list(found["plain"]) == ["mixer.M"]
    (step,) = found["optimizers"]
    assert step["name"] == "adamw_kernel" and step["faults"] == [] and step["registers"] > 0


def test_layers_that_kernels_walk_in_slices_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = {"dims.d_k": 128, "dims.d_v": 128}
    report = kernels_report(nlc.load("specs/titans_lmm.nl", set=sizes), "sm_90")
    wanted = "a hidden layer of 256 is walked 32 or 16 channels at a time"
    assert wanted in said(kernels_text(report))


TASK = (
    block(
        """
  memory M[heads] : linear(d_k -> d_v) at fast {
    key k
    value v
    update sgd(lr = 0.1)
  }
  memory N : linear(d -> d) at fast {
    objective task
    update sgd(lr = 0.1)
    through full
  }
  out = W_o(M(q)) + N(x)
"""
    )
    + """
model {
  vocab bytes
  x[d] = embed(tokens)
  x = x + mixer(x)
  logits = unembed(x)
}
"""
)


def test_no_kernels_are_told_of_where_none_are_written(call: Call) -> None:
    Path("small.nl").write_text(TASK)
    why = "no kernels are written, the package runs as PyTorch: mixer.N learns from"
    answer = call("explain", "small.nl", "--target", "triton")
    assert answer.status == 0 and why in " ".join(answer.out.split())
    assert "kernels on sm_90" not in answer.out
    found = json.loads(call("explain", "small.nl", "--target", "triton", "--format", "json").out)
    kernels = found["kernels"]
    assert kernels["kernels"] == kernels["optimizers"] == []
    assert set(kernels["plain"]) == {"mixer.M", "mixer.N"} and "mixer.N" in kernels["refused"]
    answer = call("compile", "small.nl", "--target", "triton", "--out", "made")
    assert answer.out.splitlines()[-1].startswith(why)
    assert not Path("made/kernels.py").exists()
    # without being asked for kernels nobody is told that there are none
    assert "no kernels" not in call("compile", "small.nl", "--target", "torch").out


@pytest.mark.parametrize("through", ["stop", "first_order"])
def test_what_leaves_the_second_order_out_has_kernels(call: Call, through: str) -> None:
    Path("small.nl").write_text(TASK.replace("full", through))
    answer = call("explain", "small.nl", "--target", "triton")
    assert "mixer_m:" in answer.out
    answer = call("compile", "small.nl", "--target", "triton", "--out", "made")
    assert "  kernels.py" in answer.out.splitlines() and "no kernels" not in answer.out
