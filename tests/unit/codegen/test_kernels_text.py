"""The text of `kernels.py`: formatted, the same for the same spec, without a list of systems."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nlc.codegen.triton.gradient import GRADIENTS
from nlc.codegen.triton.graph import BINARY, NAMED, UNARY
from nlc.codegen.triton.layer_slices import slices

import nlc
from nlc.compiled import compile_system
from tests.references.specs import block, resolve
from tests.unit.codegen.agree import agree

SHIPPED = ("deltanet", "gated_deltanet", "rwkv7", "titans_linear", "retnet", "linear_attention")


RESET = """
  weights g : vector(heads) init 0.7
  memory M : linear(d_k -> d_v) at fast {
    key unit(k)
    value v
    reset every 6 tokens
    update {
      M = 0.9 * M - g * grad
    }
  }
  out = W_o(M(q))
"""


LOOP = """
  weights W_a : linear(d -> heads, bias)
  a = sigmoid(W_a(x))
  memory M : mlp(d_k -> n -> d_v) at fast {
    key k
    value v
    state S = 0
    update {
      S = a * S - 0.1 * grad
      M = tanh(M) + S / (1 + norm(S, over = (in, out)))
    }
  }
  out = W_o(M(q))
"""
SLICES = """
  weights W_a : linear(d -> heads, bias)
  a = sigmoid(W_a(x))
  memory M : mlp(d_k -> 600 -> d_v, bias, norm) at fast {
    key k
    value v
    update titans(lr = 0.2 * a, momentum = a, decay = 0.1)
  }
  out = W_o(M(q))
"""
TEXTS = {"reset": block(RESET), "loop": block(LOOP), "slices": block(SLICES, chunk="20")}


def texts(name: str) -> dict[str, str]:
    system = resolve(TEXTS[name]) if name in TEXTS else nlc.load(f"specs/{name}.nl")
    return compile_system(system, "triton").files()


def test_every_operation_of_a_kernel_has_a_gradient() -> None:
    structural = {"sum", "spread", "turned", "here", "dot", "where", "scaled"}
    # what only runs backwards
    last = {"of_diagonal", "later", "at_last", "upwards", "passed_back", "ahead_back"}
    last |= {"taken", "taken_early", "decays", "decays_early", "gelu_curve", "silu_curve"}
    assert set(GRADIENTS) | last == {*UNARY, *BINARY, *NAMED, *structural}


@pytest.mark.parametrize("name", [*SHIPPED, "gla", "gated_oja", "omega", "ttt_mlp", "yaad", *TEXTS])
def test_kernels_are_formatted_and_name_where_they_come_from(name: str, tmp_path: Path) -> None:
    found = texts(name)
    assert found == texts(name)
    for file in ("model.py", "kernels.py"):
        path = tmp_path / file
        path.write_text(found[file], encoding="utf-8")
        command = [sys.executable, "-m", "ruff", "format", "--check", "--isolated"]
        done = subprocess.run(
            [*command, "--line-length", "100", str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "import nlc" not in found["kernels.py"]
    assert "@triton.jit" in found["kernels.py"]
    assert ".nl:" in found["kernels.py"] or name in TEXTS


def test_every_shipped_spec_compiles_for_the_target_with_kernels(tmp_path: Path) -> None:
    found = 0
    for path in sorted(Path("specs").glob("*.nl")):
        made = compile_system(nlc.load(path), "triton").with_kernels.texts
        found += "kernels.py" in made
        for name, text in made.items():
            (tmp_path / f"{path.stem}_{name}").write_text(text, encoding="utf-8")
    assert found > 15
    command = [sys.executable, "-m", "ruff"]
    words = ["--isolated", "--line-length", "100", str(tmp_path)]
    for check in (["format", "--check"], ["check", "--select", "F,E9"]):
        done = subprocess.run([*command, *check, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_construct_compiles_for_the_target_with_kernels(tmp_path: Path) -> None:
    from tests.unit.codegen.test_contract import SYSTEMS

    for i, text in enumerate(SYSTEMS.values()):
        texts = compile_system(resolve(text), "triton").with_kernels.texts
        for name, made in texts.items():
            (tmp_path / f"system_{i}_{name}").write_text(made, encoding="utf-8")
    command = [sys.executable, "-m", "ruff"]
    words = ["--isolated", "--line-length", "100", str(tmp_path)]
    for check in (["format", "--check"], ["check", "--select", "F821,E9"]):
        done = subprocess.run([*command, *check, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_a_memory_without_kernels_keeps_the_package_as_it_is() -> None:
    system = nlc.load("specs/transformer.nl")
    ours, plain = (compile_system(system, target).files() for target in ("triton", "torch"))
    # optimizers have kernels of their own
    assert ours.keys() == plain.keys()
    assert {name for name in ours if ours[name] != plain[name]} <= {"optimizers.py"}


def test_auto_is_plain_torch_without_a_gpu_and_loads_no_triton() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code = """
import sys, nlc
system = nlc.load("specs/deltanet.nl")
assert nlc.compile(system).target == "torch"
assert "kernels.py" in nlc.compile(system, target="triton").files()
nlc.compile(system).block("mixer")
print([m for m in sys.modules if m.partition(".")[0] == "triton"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_with_kernels_runs_as_pytorch_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    system = nlc.load("specs/gated_deltanet.nl", set={"dims.d": 8, "dims.heads": 2})
    compiled = compile_system(system, "triton")
    compiled.write(tmp_path / "made")
    torch.manual_seed(0)
    plain, ours = compile_system(system, "torch").block("mixer"), compiled.block("mixer")
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 11, 8)
    assert torch.equal(ours(x)[0], plain(x)[0])
    code = "import torch; from {}model import Mixer; print(Mixer()(torch.zeros(1, 3, 8))[0].shape)"
    for folder, prefix in ((tmp_path, "made."), (tmp_path / "made", "")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(prefix)], capture_output=True, text=True, cwd=folder
        )
        assert done.stdout.strip() == "torch.Size([1, 3, 8])", done.stderr


@pytest.mark.parametrize(
    ("name", "inside"), [("gated_deltanet", "mixer"), ("rwkv7", "time_mix"), ("mamba2", "mixer")]
)
def test_what_stands_below_the_kernels_equals_the_interpreter(name: str, inside: str) -> None:
    known = dict(nlc.load(f"specs/{name}.nl").dims)
    small = {"d": 6, "heads": 2, "d_k": 4, "d_v": 3, "rank": 3, "gate": 3}
    small |= {"d_v": 4} if name == "rwkv7" else {}
    sizes = {f"dims.{key}": size for key, size in small.items() if key in known}
    compiled = agree(nlc.load(f"specs/{name}.nl", set=sizes), inside, 9, target="triton")
    assert compiled.kernels_source


@pytest.mark.parametrize(
    ("form", "walked"),
    [
        ("mlp(d_k -> 600 -> d_v)", {"h600"}),
        ("glu(d_k -> 500 -> d_v)", set()),
        ("glu(d_k -> 600 -> d_v)", {"h600"}),
        ("mlp(d_k -> 700 -> d_k -> 600 -> d_v, bias)", {"h700", "j600"}),
        ("mlp(d_k -> d -> 600 -> d_v)", {"h600"}),
        ("mlp(d_k -> 400 -> 30 -> d_v)", {"h400"}),
        ("mlp(d_k -> 600 -> 700 -> d_v)", "a layer between two hidden widths has more than 8192"),
        ("mlp(d_k -> 16 -> d_v)", set()),
    ],
)
def test_a_hidden_width_is_walked_where_its_layers_are_large(form: str, walked: object) -> None:
    body = f"memory M : {form} at fast {{ key k; value v; update sgd(lr = 0.1) }}"
    found = slices(resolve(block(body + "\n  out = W_o(v)")).blocks[0].memories[0].map)
    if isinstance(found, str):
        assert isinstance(walked, str) and found.startswith(walked)
    else:
        assert set(found.walked) == walked
        assert set(found.walked) <= {axis for dims in found.axes.values() for axis in dims}


def test_no_width_between_layers_is_walked_where_there_is_none() -> None:
    sizes = {"dims.d_k": 128, "dims.d_v": 128}
    system = nlc.load("specs/deltanet.nl", set=sizes)
    assert slices(system.blocks[0].memories[0].map) == "a layer has more than 8192 weights"


def test_what_a_slice_needs_of_the_other_side_has_a_limit() -> None:
    def walked(size: int) -> object:
        sizes = {"dims.d_k": size, "dims.d_v": size}
        system = nlc.load("specs/titans_lmm.nl", set=sizes)
        return slices(system.blocks[0].memories[0].map)

    assert not isinstance(walked(128), str)
    assert walked(256) == "16 channels of a layer have more than 2048 weights"


def test_activations_before_a_memory_are_part_of_its_kernels() -> None:
    text = texts("gated_deltanet")["kernels.py"]
    assert "v = conv_v * (tl.sigmoid(conv_v))" in text
    assert "k    = unit(silu(conv_k(W_k(x))))   (spec.nl:" in text


def test_a_stream_called_kernels_is_no_trouble() -> None:
    text = block("""
  kernels = 2 * k
  memory M : linear(d_k -> d_v) at fast {
    key kernels
    value v
    update sgd(lr = 0.1)
  }
  out = W_o(M(q))
""")
    agree(resolve(text), tokens=5)
    assert "kernels_" in compile_system(resolve(text), "triton").source
