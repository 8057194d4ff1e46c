"""One optimizer over all levels of steps: periods, groups, exact resume, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc
from nlc.diagnostics import SpecError
from nlc.lab import checkpoint
from nlc.library import shipped_rules
from tests.unit.codegen.optimizers import same
from tests.unit.codegen.test_rules import KEYED, LIBRARY

SPEC = """
system levels
dims {{ d = 4, heads = 2, d_k = 2, h = 3 }}
{rules}
level fast every 1 token
level slow every 1 step, optimizer {slow}
level slower every {period} steps, optimizer {slower}
level ice never
block mixer(x[d]) -> out[d] {{
  weights W_k, W_v : linear(d -> heads*d_k, bias) at slow
  weights W_o      : linear(heads*d_k -> d) at slower
  weights W_x      : linear(d -> d) at ice
  weights g        : vector(d) at slower init 1
  weights c        : conv(d, width = 3) at slow
{body}
}}
"""
PLAIN = "  out = W_o(tanh(W_k(c(x))) * W_v(x)) * g + W_x(x)"
MEMORY = """
  memory M : mlp(d_k -> h -> d_k, bias) at fast { key W_k(x); value W_v(x); update sgd(lr = 0.1) }
  out = W_o(M(W_k(c(x)))) * g + W_x(x)
"""
ADAM = "adamw(lr = 0.1)"


def compiled(
    slow: str = ADAM, slower: str = "sgd(lr = 0.2)", period: int = 3, rules: str = "",
    body: str = PLAIN,
) -> nlc.compiled.Compiled:  # fmt: skip
    text = SPEC.format(slow=slow, slower=slower, period=period, rules=rules, body=body)
    return nlc.compile(nlc.parse(text))


def batch(step: int) -> Tensor:
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(step)).double()


def learn(module: nn.Module, optimizer: Any, steps: range) -> None:
    """Take steps; the closure is there for the rules that ask."""
    for step in steps:

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            total = (module(batch(step))[0] - 1).square().mean()
            total.backward()
            return total

        optimizer.step(closure)


def made(system: nlc.compiled.Compiled) -> nn.Module:
    torch.manual_seed(0)
    return system.block("mixer").double()


def test_each_level_acts_at_its_own_period_with_the_sum_of_the_gradients() -> None:
    system = compiled()
    module, other = made(system), made(system)
    names = {"slow": [], "slower": []}
    for name, _ in other.named_parameters():
        if not name.startswith("W_x"):
            names["slower" if name in ("W_o.weight", "g") else "slow"].append(name)
    parameters = dict(other.named_parameters())
    fast = torch.optim.AdamW([parameters[n] for n in names["slow"]], lr=0.1)
    slow = torch.optim.SGD([parameters[n] for n in names["slower"]], lr=0.2)
    optimizer = system.optimizer(module)
    for step in range(7):
        learn(module, optimizer, range(step, step + 1))
        fast.zero_grad()  # the slower level's gradients add up
        (other(batch(step))[0] - 1).square().mean().backward()
        fast.step()
        if step % 3 == 2:
            slow.step()
            slow.zero_grad()
        for name, value in module.named_parameters():
            same(value, parameters[name], f"{name} after step {step}")


def test_copies_are_vectors_where_the_parts_are() -> None:
    system = compiled(slow="muon(lr = 0.1)", body=MEMORY)
    module = made(system)
    optimizer = system.optimizer(module)
    leads = {group["lead"] for group in optimizer.param_groups}
    assert leads == {None, 1}
    names = {p: n for n, p in module.named_parameters()}
    copies = [names[p] for g in optimizer.param_groups if g["lead"] for p in g["params"]]
    assert copies == ["M.layer1.bias", "M.layer2.bias"]
    before = module.M.layer1.bias.detach().clone()
    module.M.layer1.bias.grad = torch.randn(2, 3).double()
    gradient = module.M.layer1.bias.grad.clone()
    optimizer.step()
    # a vector is not orthogonalised: the first step is along (1 + beta) grad
    want = (1 - 0.1 * 0.1) * before - 0.1 * 1.95 * gradient
    same(module.M.layer1.bias, want, "bias")


@pytest.mark.parametrize("rule", sorted(LIBRARY | KEYED))
def test_a_run_goes_on_exactly_where_it_was(rule: str, tmp_path: Path) -> None:
    arguments = (LIBRARY | KEYED)[rule] | {"lr": 0.01}
    words = ", ".join(f"{k} = {v}" for k, v in arguments.items())
    # a rule that takes gradients at other values acts at every step
    slower = "sgd(lr = 0.1)" if rule in ("sam", "gated_delta") else f"{rule}({words})"
    system = compiled(slow=f"{rule}({words})", slower=slower, period=3)
    module = made(system)
    optimizer = system.optimizer(module)
    learn(module, optimizer, range(4))
    nest = {"model": dict(module.state_dict()), "optimizer": optimizer.state_dict()}
    checkpoint.save(tmp_path / "c.safetensors", nest)
    learn(module, optimizer, range(4, 11))
    for i in range(2):
        nest = checkpoint.load(tmp_path / "c.safetensors")
        again = made(system)
        again.load_state_dict(nest["model"])
        resumed = system.optimizer(again)
        resumed.load_state_dict(nest["optimizer"])
        learn(again, resumed, range(4, 11))
        for name, value in again.state_dict().items():
            assert value.isfinite().all()
            assert torch.equal(value, module.state_dict()[name]), (i, name)


def test_states_are_by_name_and_in_float32_at_least() -> None:
    system = compiled()
    module = system.block("mixer").bfloat16()
    optimizer = system.optimizer(module)
    for step in range(2):
        for p in module.parameters():
            p.grad = torch.ones_like(p) * step
        optimizer.step()
    state = optimizer.state[module.W_k.weight]
    assert set(state) == {"m", "v", "n"} and state["n"] == 2
    assert state["m"].dtype == torch.float32 and module.W_k.weight.dtype == torch.bfloat16
    fresh = system.optimizer(module)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded = fresh.state[module.W_k.weight]
    assert loaded["m"].dtype == torch.float32 and torch.equal(loaded["m"], state["m"])
    assert loaded["m"].data_ptr() != state["m"].data_ptr()
    waiting = optimizer.state[module.W_o.weight]
    assert waiting["level.sum"].dtype == torch.float32


def test_schedulers_work_on_the_arguments() -> None:
    system = nlc.compile(nlc.parse("system rules\ndims { n = 1 }"))
    values = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = system.rule("sgd")(
        [{"params": [values[0]]}, {"params": [values[1]], "lr": 1}], lr=0.5
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    for _ in range(2):
        for value in values:
            value.grad = torch.ones(3)
        optimizer.step()
        schedule.step()
    same(values[0], torch.full((3,), 1 - 0.5 - 0.05), "first", 1e-6)
    same(values[1], torch.full((3,), 1 - 1 - 0.1), "second", 1e-6)


def test_sparse_gradients_are_as_good_as_others() -> None:
    system = nlc.compile(nlc.parse("system rules\ndims { n = 1 }"))
    tables = [nn.Embedding(5, 3, sparse=sparse).double() for sparse in (False, True)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table in tables:
        optimizer = system.rule("adamw")(table.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            table(torch.tensor([1, 3, 3])).square().sum().backward()
            optimizer.step()
    same(tables[1].weight, tables[0].weight, "table")


def test_what_a_call_gets_wrong_is_said() -> None:
    system = nlc.compile(nlc.parse("system rules\ndims { n = 1 }"))
    value = nn.Parameter(torch.ones(3))
    value.grad = torch.ones(3)
    with pytest.raises(ValueError, match="give step a closure"):
        system.rule("sam")([value], lr=0.1).step()
    with pytest.raises(ValueError, match=r"f is a whole number from 1 on, not 2\.5"):
        system.rule("m3")([value], f=2.5)
    with pytest.raises(ValueError, match=r"moves real numbers, not a tensor of torch\.int64"):
        system.rule("sgd")([torch.ones(3, dtype=torch.long)], lr=0.1)
    with pytest.raises(ValueError, match="there is no rule 'sdg'"):
        system.rule("sdg")
    with pytest.raises(TypeError, match="lr"):
        system.rule("sgd")([value])
    with pytest.raises(ValueError, match="no level of steps has an optimizer"):
        system.optimizer(nn.Linear(2, 2))


AVERAGED = """
rule averaged(lr) {
  state avg = self
  self = self - lr * grad
  avg  = lerp(avg, self, 0.1)
  eval = avg
}
"""


def test_averages_are_in_place_for_evaluation_only() -> None:
    system = compiled(slow="averaged(lr = 0.1)", rules=AVERAGED)
    module = made(system)
    optimizer: Any = system.optimizer(module)
    optimizer.eval()
    optimizer.train()
    learn(module, optimizer, range(3))
    trained = module.W_k.weight.detach().clone()
    slower = module.W_o.weight.detach().clone()
    optimizer.eval()
    optimizer.eval()
    assert torch.equal(module.W_k.weight, optimizer.state[module.W_k.weight]["avg"])
    assert torch.equal(module.W_o.weight, slower)
    with pytest.raises(RuntimeError, match="call train"):
        optimizer.step()
    optimizer.train()
    assert torch.equal(module.W_k.weight, trained)


INPUTS = """
system inputs
dims { d = 4 }
level slow every 2 steps, optimizer dgd(lr = 0.1)
block f(x[d]) -> out[d] {
  weights A, B : linear(d -> d, bias)
  weights G    : glu(d -> 3 -> d)
  out = G(tanh(A(x))) + B(shift(x))
}
"""


def test_maps_are_known_by_their_inputs() -> None:
    system = nlc.compile(nlc.parse(INPUTS))
    torch.manual_seed(0)
    module = system.block("f").double()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer: Any = system.optimizer(module)
    xs = [batch(step) for step in range(2)]
    total = {n: torch.zeros_like(p) for n, p in before.items()}
    for step, x in enumerate(xs):
        with torch.no_grad():
            module(batch(9))  # a measurement in between counts for nothing
        optimizer.zero_grad()
        (module(x)[0] - 1).square().mean().backward()
        for n, p in module.named_parameters():
            assert p.grad is not None
            total[n] += p.grad
        if step == 0:
            state = optimizer.state_dict()
        optimizer.step()
    h = [torch.tanh(x @ before["A.weight"].T + before["A.bias"]) for x in xs]
    gated = [torch.nn.functional.silu(y @ before["G.gate"].T) * (y @ before["G.up"].T) for y in h]
    shifted = [torch.cat((torch.zeros(2, 1, 4).double(), x[:, :-1]), 1) for x in xs]
    keys = {"A.weight": xs, "B.weight": shifted, "G.gate": h, "G.up": h, "G.down": gated}
    for n, p in module.named_parameters():
        want = before[n] - 0.1 * total[n]
        if n in keys:
            K = torch.cat([x.flatten(0, 1) for x in keys[n]])
            step_size = 0.1 / (1 + 0.1 * K.square().sum(1).mean())
            want = before[n] - step_size * (before[n] @ (K.T @ K) / len(K) + total[n])
        same(p, want, n, 1e-12)
    assert not optimizer.inputs and state
    assert all("level.inputs" not in kept for kept in optimizer.state.values())


def test_a_rule_that_uses_inputs_takes_a_module() -> None:
    system = nlc.compile(nlc.parse(INPUTS))
    linear = nn.Linear(3, 2, bias=False).double()
    before = linear.weight.detach().clone()
    with pytest.raises(ValueError, match="give it the module, not a list"):
        system.rule("dgd")(linear.parameters(), lr=0.1)
    optimizer = system.rule("dgd")(linear, lr=0.1)
    x = torch.randn(1, 3).double()
    linear(x).sum().backward()
    assert linear.weight.grad is not None
    optimizer.step()
    # the W that fits W x to W x - grad, and stays near: equation 56, solved
    u = -torch.ones(2).double()
    eye = torch.eye(3).double()
    exact = torch.linalg.solve((x.T @ x + eye / 0.1).T, (u[:, None] @ x + before / 0.1).T).T
    same(linear.weight, exact, "weight", 1e-12)


def test_an_optimizer_can_be_copied() -> None:
    system = compiled(slow="m3(lr = 0.01, f = 2)")
    module = made(system)
    optimizer = system.optimizer(module)
    learn(module, optimizer, range(3))
    pair = copy.deepcopy((module, optimizer))
    learn(module, optimizer, range(3, 6))
    learn(*pair, range(3, 6))
    for (name, a), b in zip(module.named_parameters(), pair[0].parameters(), strict=True):
        assert torch.equal(a, b), name


def test_frozen_parameters_stay() -> None:
    system = compiled()
    module = made(system)
    module.g.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    learn(module, system.optimizer(module), range(3))
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before) - {"g", "W_x.weight"}


REFUSED = {
    "sam(lr = 0.1)": "`slower` acts every 3 steps",
    "tokens(lr = 0.1)": "the rule `tokens` cannot be an optimizer",
    "squares(lr = 0.1)": "the rule `squares` cannot be an optimizer",
}
WRONG = """
rule tokens(lr) { self = self - lr * grad; every 4 tokens { self = 0.9 * self } }
rule squares(lr) { every 2 steps { self = self - lr * grad(at = 0.5 * self) } }
"""


@pytest.mark.parametrize("rule", REFUSED)
def test_what_no_optimizer_can_do_is_refused(rule: str) -> None:
    with pytest.raises(SpecError) as found:
        compiled(slower=rule, rules=WRONG)
    assert {d.code for d in found.value.diagnostics} == {"NL0806"}
    with pytest.raises(SpecError, match="NL0806"):
        text = SPEC.format(slow=ADAM, slower=rule, period=3, rules=WRONG, body=PLAIN)
        nlc.check(nlc.parse(text))
    words = str(found.value.diagnostics[0]) + str(found.value.diagnostics[0].labels)
    assert REFUSED[rule] in found.value.diagnostics[0].title or REFUSED[rule] in words


def test_the_library_is_covered() -> None:
    assert set(LIBRARY) | set(KEYED) == set(shipped_rules())
