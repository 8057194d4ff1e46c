"""Probes: what they measure equals the same written by hand, and measuring changes nothing."""

from __future__ import annotations

import json
import math
import xml.dom.minidom
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.lab.figure import figure
from nlc.lab.probe import Prober, describe
from nlc.lab.probe_report import report
from nlc.lab.probe_weights import describe_weights, next_update, values_of
from nlc.lab.run import read
from nlc.lab.spectrum import entropy, spread
from nlc.lab.tasks import Examples

SPEC = """
system probed

dims { d = 8, heads = 2, k = 4 }

level fast every 1 token
level beat every 4 tokens
level slow every 1 step, optimizer adam(lr = 0.01)
level late every 3 steps, optimizer sgd(lr = 0.1)

block mixer(x[d]) -> y[d] {
  weights W_k, W_q : linear(d -> heads*k) at slow
  weights W_v      : linear(d -> heads*k) at late
  weights W_o      : linear(heads*k -> d) at slow
  weights g        : vector(heads, k) at slow init 0.5

  u = unit(W_k(x))
  v = W_v(x)

  memory M : linear(k -> k) at fast {
    key    u
    value  v
    update { self = 0.5 * self - 0.25 * grad(at = 0.5 * self) }
  }

  memory C : linear(k -> k) at beat {
    key    u
    value  v
    update { self = self @ diag(mean(g * sigmoid(v), over = tokens)) - 0.1 * grad }
  }

  memory N : linear(k -> k) at fast {
    key    u
    value  v
    update { self = tanh(self - 0.1 * grad) }
  }

  y = W_o(M(W_q(x)) + C(W_q(x)) + N(W_q(x)))
}

model {
  vocab bytes
  x[d] = embed(tokens)
  repeat 2 { x = x + mixer(rmsnorm(x)) }
  logits = unembed(x)
}
"""


@pytest.fixture(scope="module")
def compiled() -> Any:
    return nlc.compile(nlc.parse(SPEC))


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, length), generator=generator)


def pairs(rows: int, length: int, seed: int = 0) -> Examples:
    window = tokens(rows, length + 1, seed)
    return Examples(window[:, :-1], window[:, 1:])


class Batches:
    """A lesson, as far as probes need one."""

    def at(self, step: int) -> Examples:
        return pairs(2, 12, 100 + step)


class Learner:
    """A learner without a run folder."""

    def __init__(self, compiled: Any):
        torch.manual_seed(0)
        self.model = compiled.model()
        self.optimizer = compiled.optimizer(self.model)
        self.step = 0

    def learn(self, examples: Examples) -> float:
        logits, _ = self.model(examples.inputs)
        loss = self.model.loss(logits, examples.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())


def look(compiled: Any, model: Any, piece: Tensor) -> dict[str, Any]:
    return describe(compiled.system, model, piece[:, :-1], piece[:, 1:])


# ---- spectra -----------------------------------------------------------------------------------


def test_equal_singular_values_have_the_largest_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    polar = spread(u @ v)
    assert polar is not None and polar["full"] == 8
    assert polar["rank"] == pytest.approx(8, rel=1e-4)
    assert polar["entropy"] == pytest.approx(math.log(8), rel=1e-4)
    own = spread(g)
    assert own is not None and own["entropy"] < polar["entropy"]
    low = spread(torch.outer(g[0], g[1]))
    assert low is not None and low["rank"] == pytest.approx(1.0)


def test_entropy_is_that_of_shares() -> None:
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert float(entropy(10 * p)) == pytest.approx(1.5 * math.log(2))
    assert spread(torch.zeros(3, 3)) is None and spread(torch.ones(1, 3)) is None
    # a batch of which one is zero: the mean over the others
    pair = torch.stack([torch.eye(3), torch.zeros(3, 3)])
    found = spread(pair)
    assert found is not None and found["rank"] == pytest.approx(3.0)


# ---- memories ----------------------------------------------------------------------------------


def by_hand(model: Any, x: Tensor) -> dict[str, Any]:
    """The first block's memories M and C, as loops over tokens [rows, T]."""
    p = {n.removeprefix("repeat.0.mixer."): v.double() for n, v in values_of(model).items()}
    h = p["embed.weight"][x]
    h = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    rows, length = x.shape

    def heads(name: str) -> Tensor:
        return (h @ p[name].T).view(rows, length, 2, 4)

    u, v = torch.nn.functional.normalize(heads("W_k.weight"), dim=-1), heads("W_v.weight")
    found: dict[str, Any] = {"surprise": [], "norm": [], "update": [], "beat": [], "window": []}
    m = torch.zeros(rows, 2, 4, 4, dtype=torch.float64)
    c, total = m, m
    for t in range(length):
        k, w = u[:, t, :, :, None], v[:, t, :, :, None]
        found["surprise"].append(0.5 * (m @ k - w).square().sum((-2, -1)).mean())
        new = 0.5 * m - 0.25 * (0.5 * m @ k - w) @ k.mT
        found["update"].append((new - m).square().sum((-2, -1)).sqrt().mean())
        found["norm"].append(new.square().sum((-2, -1)).sqrt().mean())
        found["beat"].append(0.5 * (c @ k - w).square().sum((-2, -1)).mean())
        m, total = new, total + (c @ k - w) @ k.mT
        if t % 4 == 3:
            gate = (p["g"] * torch.sigmoid(v[:, t - 3 : t + 1])).mean(1)
            found["window"].append(gate)
            c, total = c * gate[..., None, :] - 0.1 * total, torch.zeros_like(total)
    found["change"] = m
    return found


def test_memories_are_described_as_by_hand(compiled: Any) -> None:
    torch.manual_seed(1)
    model, piece = compiled.model(), tokens(2, 13)
    found = look(compiled, model, piece)
    hand = by_hand(model, piece[:, :-1])
    m = found["memories"]["repeat.0.mixer.M"]
    assert m["level"] == "fast"
    assert m["loss_by_token"] == pytest.approx([float(x) for x in hand["surprise"]], rel=1e-4)
    assert m["states"]["M"]["norm_by_token"] == pytest.approx(
        [float(x) for x in hand["norm"]], rel=1e-4
    )
    assert m["states"]["M"]["update"] == pytest.approx(
        float(torch.stack(hand["update"]).mean()), rel=1e-4
    )
    ranks = entropy(torch.linalg.svdvals(hand["change"])).exp().mean()
    assert m["spectra"]["M"]["change"]["rank"] == pytest.approx(float(ranks), rel=1e-4)
    # half of it is left after each token, and a unit key erases a quarter of that half
    assert m["gates"]["M"] == {"value": [0.5] * 3, "half_life": [1.0] * 3}
    assert m["erases"]["M"] == pytest.approx([0.125] * 3, rel=1e-4)


def test_gates_of_windows_are_those_of_their_ends(compiled: Any) -> None:
    torch.manual_seed(1)
    model, piece = compiled.model(), tokens(2, 13)
    c = look(compiled, model, piece)["memories"]["repeat.0.mixer.C"]
    hand = by_hand(model, piece[:, :-1])
    assert c["loss_by_token"] == pytest.approx([float(x) for x in hand["beat"]], rel=1e-4)
    gates = torch.stack(hand["window"]).flatten(0, 1).flatten(1)
    least, _, most = c["gates"]["C"]["value"]
    assert least == pytest.approx(float(gates.mean(0).min()), rel=1e-4)
    assert most == pytest.approx(float(gates.mean(0).max()), rel=1e-4)
    lives = 4 * math.log(2) / -gates.log().mean(0)
    assert c["gates"]["C"]["half_life"][0] == pytest.approx(float(lives.min()), rel=1e-4)


def test_an_update_without_a_normal_form_says_why(compiled: Any) -> None:
    n = look(compiled, compiled.model(), tokens(1, 7))["memories"]["repeat.1.mixer.N"]
    assert n["gates"] == {} and "tanh" in n["no_gates"]


def test_a_memory_that_leaves_the_finite_numbers_is_described_all_the_same() -> None:
    system = nlc.parse(SPEC.replace("self = 0.5 * self -", "self = 1e60 * self -"))
    compiled = nlc.compile(system)
    found = look(compiled, compiled.model(), tokens(1, 14))
    m = found["memories"]["repeat.0.mixer.M"]
    assert m["loss"] is None and m["states"]["M"]["norm_by_token"][-1] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    found |= {"weights": {}, "levels": {}}
    assert any("not finite" in line for line in report(system, found))
    assert "nan" not in figure("a", [(0, found)])


@pytest.mark.slow
def test_every_shipped_spec_can_be_probed() -> None:
    from nlc.library import library_folder

    for path in sorted(library_folder().glob("*.nl")):
        system = nlc.load(path)
        if system.model is None:
            continue
        compiled = nlc.compile(system)
        found = look(compiled, compiled.model(), tokens(1, 9))
        moving = [m for b in system.blocks for m in b.memories if m.update]
        assert bool(found["memories"]) == bool(moving), path.name
        windows = {m.name: m.window for m in moving}
        for name, memory in found["memories"].items():
            told = memory["gates"] or "no_gates" in memory or windows[name.split(".")[-1]] > 8
            assert told and memory["states"], path.name
        assert found["activations"]


# ---- weights -----------------------------------------------------------------------------------


def test_the_next_update_is_found_without_taking_it(compiled: Any) -> None:
    learner, batches = Learner(compiled), Batches()
    for _ in range(4):
        learner.learn(batches.at(learner.step))
    random = torch.get_rng_state()
    state = json.dumps(learner.optimizer.state_dict(), default=lambda x: x.tolist())
    before = values_of(learner.model)
    found = next_update(learner, batches)  # type: ignore[arg-type]
    assert learner.step == 4 and torch.equal(random, torch.get_rng_state())
    assert state == json.dumps(learner.optimizer.state_dict(), default=lambda x: x.tolist())
    assert all(torch.equal(before[n], p) for n, p in values_of(learner.model).items())

    # step 5 moves the fast level; the slow one has its sixth step two steps from here
    learner.learn(batches.at(4))
    now = values_of(learner.model)
    assert torch.equal(found["unembed.weight"], now["unembed.weight"] - before["unembed.weight"])
    late = "repeat.0.mixer.W_v.weight"
    assert torch.equal(now[late], before[late])
    learner.learn(batches.at(5))
    assert torch.equal(found[late], values_of(learner.model)[late] - before[late])
    assert set(found) == set(before)


def test_a_level_is_the_sum_of_its_weights(compiled: Any) -> None:
    learner, batches = Learner(compiled), Batches()
    first = values_of(learner.model)
    learner.learn(batches.at(0))
    found = describe_weights(learner, batches, first)  # type: ignore[arg-type]
    slow = found["levels"]["slow"]
    own = {n: w for n, w in found["weights"].items() if w["level"] == "slow"}
    assert slow["norm"] == pytest.approx(sum(w["norm"] ** 2 for w in own.values()) ** 0.5, rel=1e-4)
    assert found["levels"]["late"]["change"]["norm"] == 0.0
    w = found["weights"]["unembed.weight"]
    change = values_of(learner.model)["unembed.weight"] - first["unembed.weight"]
    assert w["change"]["norm"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert w["change"]["spectrum"] == spread(change)
    assert set(w["optimizer"]) == {"m", "v"}


def test_orthogonalised_updates_have_more_entropy_than_those_of_sgd() -> None:
    """What is known of one step: an orthogonalised update has nearly the largest entropy."""
    shares = {}
    for rule in ("sgd(lr = 0.1)", "muon(lr = 0.01)"):
        compiled = nlc.compile(nlc.parse(SPEC, set={"levels.slow.optimizer": rule}))
        learner = Learner(compiled)
        found = describe_weights(learner, Batches(), values_of(learner.model))  # type: ignore[arg-type]
        shares[rule[:4]] = found["levels"]["slow"]["update"]["rank_share"]
    assert shares["muon"] > 0.9 > shares["sgd("]


# ---- pictures ----------------------------------------------------------------------------------


def test_the_picture_shows_each_memory_level_and_matrix(compiled: Any) -> None:
    learner, batches = Learner(compiled), Batches()
    prober = Prober(compiled.system, compiled.model, 0, pairs(2, 12))
    steps = []
    for _ in range(3):
        steps.append((learner.step, json.loads(json.dumps(prober(learner, batches)))))  # type: ignore[arg-type]
        learner.learn(batches.at(learner.step))
    for shown in (steps, steps[:1]):
        svg = figure("a <spec>", shown)
        texts = [
            t.firstChild.data  # type: ignore[union-attr]
            for t in xml.dom.minidom.parseString(svg).getElementsByTagName("text")
        ]
        assert "a <spec>: probes" in texts and "Surprise along the text" in texts
        assert {"mixer.M", "mixer.C", "level slow", "unembed.weight"} <= set(texts)
        assert "prefers-color-scheme:dark" in svg and "nan" not in svg
    # the parameters at step 0 are those that the seed gives
    assert steps[0][1]["weights"]["unembed.weight"]["change"]["norm"] == 0.0


# ---- the command line --------------------------------------------------------------------------


def test_a_probed_run_has_the_numbers_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("probed.nl").write_text(SPEC.strip() + "\n")
    words = ["train", "probed.nl", "--steps", 5, "--batch", 2, "--length", 16, "--eval-every", 2]
    words += ["--eval-bytes", 64, "--sample", 0, "--threads", 1]
    call(monkeypatch, *words, "--out", "plain")
    call(monkeypatch, *words, "--out", "seen", "--probe", "--probe-tokens", 9)

    def numbers(name: str) -> list[dict[str, Any]]:
        lines = read(Path(name)).measurements()
        return [{k: v for k, v in m.items() if k != "seconds"} for m in lines if "probe" not in m]

    assert numbers("plain") == numbers("seen")
    probes = {m["step"]: m["probe"] for m in read(Path("seen")).measurements() if "probe" in m}
    assert list(probes) == [0, 2, 4, 5]
    assert probes[4]["tokens"] == [2, 9] and Path("seen/probes.svg").is_file()

    capsys.readouterr()
    call(monkeypatch, "probe", "plain", "--tokens", 9)
    told = capsys.readouterr().out
    assert "probed at step 5" in told and "half-life 1 tokens" in told
    assert "level late, every 3 steps" in told and "no gates: " in told
    found = [m["probe"] for m in read(Path("plain")).measurements() if "probe" in m]
    assert found == [probes[5]]
    first = sorted(Path("plain/checkpoints").iterdir())[0]
    call(monkeypatch, "probe", first)
    assert "probed at step 0" in capsys.readouterr().out


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    from nlc.cli import main

    monkeypatch.setattr("sys.argv", ["nlc", *map(str, words)])
    ended: Callable[[], None] = main
    try:
        ended()
    except SystemExit as done:
        assert not done.code, done.code


def test_a_task_is_probed_over_its_own_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("probed.nl").write_text(SPEC.strip() + "\n")
    words = ["train", "probed.nl", "--task", "mqar", "--steps", 1, "--batch", 2, "--length", 32]
    call(monkeypatch, *words, "--out", "recall", "--probe", "--threads", 1)
    probes = [m["probe"] for m in read(Path("recall")).measurements() if "probe" in m]
    assert [p["tokens"] for p in probes] == [[2, 32], [2, 32]]
    assert all(math.isfinite(p["loss"]) for p in probes)


ONLINE = """
system online

dims { d = 8 }

level beat every 4 tokens, optimizer sgd(lr = 0.5, weight_decay = 0.1)
level slow every 1 step, optimizer adam(lr = 0.01)

block ffn(x[d]) -> y[d] {
  weights A : linear(d -> d) at beat
  weights B : linear(d -> d) at slow
  y = B(silu(A(x)))
}

model {
  vocab bytes
  x[d] = embed(tokens)
  x = x + ffn(x)
  logits = unembed(x)
}
"""


def test_what_learns_from_the_task_is_surprised_by_the_task() -> None:
    compiled = nlc.compile(nlc.parse(ONLINE))
    torch.manual_seed(3)
    model, piece = compiled.model(), tokens(2, 14)
    found = look(compiled, model, piece)
    a = found["memories"]["ffn.A"]
    logits, state = model.double()(piece[:, :-1])
    task = torch.nn.functional.cross_entropy(logits.mT, piece[:, 1:], reduction="none")
    assert a["loss_by_token"] == pytest.approx(task.mean(0).tolist(), rel=1e-4)
    # it moves when the token after a window comes: at the 5th, 9th and 13th of 13 tokens
    norms, start = a["states"]["A"]["norm_by_token"], values_of(model)["ffn.A.weight"]
    assert norms[0] == pytest.approx(float(start.norm()), rel=1e-4)
    assert [t for t in range(1, 13) if norms[t] != norms[t - 1]] == [4, 8, 12]
    assert a["gates"]["A"]["value"] == pytest.approx([0.95] * 3)
    assert a["spectra"]["A"]["change"] is not None and a["erases"] == {}
    now = state["ffn"]["A"]
    assert norms[-1] == pytest.approx(float(now.detach().flatten(1).norm(dim=-1).mean()), rel=1e-4)
