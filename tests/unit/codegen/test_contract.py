"""What emitted modules promise: types, devices, compilation, names, text."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nlc
from nlc import parse as resolve
from nlc.compiled import Compiled, compile_system
from nlc.runtime.initial import initial_parameters
from tests.unit.codegen.agree import flat, randomised
from tests.unit.codegen.test_emitted import SYSTEMS

SPECS = sorted(p for p in Path(nlc.__file__).parents[1].joinpath("specs").glob("*.nl"))
NAMES = [p.stem for p in SPECS if p.stem != "rules"]
SMALL = {"d": 16, "heads": 2, "d_k": 4, "d_v": 6, "d_h": 4, "hidden": 12, "window": 5}


def small(name: str) -> Compiled:
    path = next(p for p in SPECS if p.stem == name)
    dims = dict(nlc.load(path).dims)
    settings = {f"dims.{k}": v for k, v in SMALL.items() if k in dims}
    return nlc.compile(nlc.load(path, set=settings))


def rounded(part: nn.Module, args: Any, out: Any) -> Any:
    """Round what a module gives to bfloat16, and keep it in float64."""
    if isinstance(out, torch.Tensor):
        return out.bfloat16().double()
    if not isinstance(out[0], torch.Tensor):
        # a memory that others hang on gives its chunks, and is read outside
        return out
    return out[0].bfloat16().double(), *out[1:]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float64(name: str) -> None:
    torch.manual_seed(0)
    compiled = nlc.compile(nlc.load(next(p for p in SPECS if p.stem == name)))
    block = compiled.system.blocks[0]
    module = compiled.block(block.name).to(torch.bfloat16)
    exact = compiled.block(block.name).double()
    exact.load_state_dict(module.state_dict())
    x = torch.randn(2, 40, *(a.size for a in block.inputs[0].shape)).bfloat16()
    got, state = module(x)
    # what the projections round to is theirs; all that follows from it has to be as exact as can be
    for part in exact.modules():
        if list(part.parameters()) and not list(part.children()):
            part.register_forward_hook(rounded)
    want, _ = exact(x.double())
    assert got.dtype == torch.bfloat16
    error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 5e-3
    stepped, _ = module.step(x[:, 0], state)
    assert stepped.dtype == torch.bfloat16
    got.float().sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_float64_keeps_every_state_in_float64(name: str) -> None:
    module = small(name).model().double()
    _, state = module(torch.randint(0, 256, (1, 7)))
    for leaf in flat(state).values():
        assert isinstance(leaf, int) or not leaf.is_floating_point() or leaf.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_made_on_the_meta_device_and_drawn_later(name: str) -> None:
    compiled = small(name)
    with torch.device("meta"):
        module = compiled.model()
    assert all(p.is_meta for p in module.parameters())
    module.to_empty(device="cpu")
    torch.manual_seed(0)
    module.reset_parameters()
    drawn = initial_parameters(compiled.system)
    found = dict(module.named_parameters())
    assert set(found) == set(drawn)
    for key, value in drawn.items():
        assert torch.equal(found[key], value), key


# a spec of each schedule; the others are compiled in `make test-all`
TRACED = {"linear_attention", "gated_deltanet", "titans_lmm", "sliding_window", "rwkv7"}


@pytest.mark.parametrize(
    "name", [n if n in TRACED else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_compiles_without_graph_breaks(name: str) -> None:
    module = small(name).model()
    tokens = torch.randint(0, 256, (2, 9))
    want, _ = module(tokens)
    if hasattr(module, "read_piece"):
        # what learns between pieces does so outside of the graph
        module.read_piece = torch.compile(
            module.read_piece, fullgraph=True, backend="aot_eager"
        )  # fmt: skip
        got, _ = module(tokens)
    else:
        got, _ = torch.compile(module, fullgraph=True, backend="aot_eager")(tokens)
    torch.testing.assert_close(got, want)
    got.sum().backward()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_sequence_changes_nothing(name: str) -> None:
    module = small(name).model()
    out, state = module(torch.zeros(2, 0, dtype=torch.long))
    assert out.shape[:2] == (2, 0)
    _, later = module(torch.zeros(2, 3, dtype=torch.long), state)
    _, whole = module(torch.zeros(2, 3, dtype=torch.long))
    assert flat(later).keys() == flat(whole).keys()


def test_a_folder_is_replaced_only_by_a_whole_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, compiled = tmp_path / "package", small("deltanet")
    compiled.write(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for method, wrong in (("write_text", fail), ("chmod", stop)):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, wrong)
            with pytest.raises((OSError, KeyboardInterrupt)):
                compiled.write(folder)
    real = Path.rename

    def second(self: Path, target: Path) -> Path:
        if target == folder and self.name != "package":
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", second)
        with pytest.raises(KeyboardInterrupt):
            compiled.write(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    compiled.write(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("name", NAMES)
def test_a_state_grows_only_where_all_pairs_are_kept(name: str) -> None:
    compiled = small(name)
    model = compiled.model()
    endless = {
        m.name for b in compiled.system.blocks for m in b.memories
        if m.map.kind == "kernel" and m.map.option("window") is None
    }  # fmt: skip
    sizes = []
    state = None
    with torch.no_grad():
        for token in torch.randint(0, 256, (40, 1)):
            _, state = model.step(token, state)
            leaves = flat(state)
            sizes.append({n: v.numel() for n, v in leaves.items() if not isinstance(v, int)})
    # the tokens of unfinished windows, which end some time
    growing = {n for n in sizes[-1] if sizes[-1][n] != sizes[19][n]} - {"tokens.recent|"}
    assert {n.split("|")[-3] for n in growing} == endless


@pytest.mark.parametrize("name", NAMES)
def test_same_spec_same_bytes(name: str) -> None:
    assert small(name).files() == small(name).files()


@pytest.mark.parametrize("name", [*NAMES, *sorted(SYSTEMS)])
def test_the_text_imports_torch_only(name: str) -> None:
    compiled = small(name) if name in NAMES else compile_system(resolve(SYSTEMS[name]))
    roots = set()
    for node in ast.walk(ast.parse(compiled.source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert roots <= {"__future__", "math", "typing", "torch"}


def test_all_texts_are_formatted_and_clean(tmp_path: Path) -> None:
    for name in NAMES:
        for file, text in small(name).files().items():
            if file.endswith(".py"):
                (tmp_path / f"{name}_{file}").write_text(text)
    for i, name in enumerate(sorted(SYSTEMS)):
        (tmp_path / f"system_{i}.py").write_text(compile_system(resolve(SYSTEMS[name])).source)
    settings = str(Path(nlc.__file__).parents[1] / "pyproject.toml")
    for words in (["format", "--diff"], ["check", "--output-format", "concise"]):
        command = [sys.executable, "-m", "ruff", *words, "--config", settings, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:]


def test_a_written_package_runs_alone(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    compiled = small("gated_deltanet")
    compiled.write(folder)
    compiled.write(folder)
    code = (
        "import sys, torch, model; m = model.Model(); "
        "y, s = m(torch.zeros(1, 3, dtype=torch.long)); print(tuple(y.shape), 'nlc' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "(1, 3, 256) False", done.stderr
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        compiled.write(folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_computed_initial_values_are_exact_in_the_type_of_the_parameter() -> None:
    text = """system starts
dims { d = 24, heads = 4, d_k = 6 }
level slow every 1 step
block b(x[d]) -> out[d] {
  weights mu : vector(d) init 1 - (index(d) / d)^0.45
  weights w0 : vector(heads, d_k) init -5.5 +
  6 * (split(index(d), heads, d_k) / (d - 1))^1.81 +
  2.5 * (2 * index(d_k) / (d_k - 1) - 1) * abs(2 * index(d_k) / (d_k - 1) - 1)
  weights W : linear(d -> d) init outer(mu, mu) / 3
  out = W(x) * mu + flat(w0)
}
"""
    compiled = compile_system(resolve(text))
    wanted = initial_parameters(compiled.system, "b")
    for path, value in compiled.block("b").named_parameters():
        assert torch.equal(value.detach(), wanted[path]), path
    assert max(map(len, compiled.source.splitlines())) <= 100


def test_levels_of_steps_train_at_their_own_period() -> None:
    text = """
system two
dims { d = 4 }
level slow every 1 step, optimizer sgd(lr = 0.5)
level rare every 3 steps, optimizer sgd(lr = 0.25)
block f(x[d]) -> out[d] {
  weights A : linear(d -> d) at slow
  weights B : linear(d -> d) at rare
  out = A(x) + B(x)
}
"""
    compiled = nlc.compile(nlc.parse(text))
    module = compiled.block("f")
    optimizer = compiled.optimizer(module)
    start = {k: v.clone() for k, v in module.state_dict().items()}
    for step in range(3):
        out, _ = module(torch.ones(1, 2, 4))
        out.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = not torch.equal(module.B.weight, start["B.weight"])
        assert moved == (step == 2)
    torch.testing.assert_close(module.A.weight, start["A.weight"] - 0.5 * 3 * 2)
    torch.testing.assert_close(module.B.weight, start["B.weight"] - 0.25 * 3 * 2)


def test_randomised_moves_zeros() -> None:
    assert any(p.abs().sum() > 0 for p in randomised(small("deltanet").model()).parameters())
