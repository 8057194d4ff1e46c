"""Whatever a spec calls its things, emitted code computes the same, or the name is refused."""

from __future__ import annotations

import keyword

import pytest
import torch
from nlc.codegen.library_source import library_names

import nlc
from nlc.semantics.names import EMITTED, MODULE
from tests.unit.codegen.agree import agree, close, randomised, streams

SPEC = """system a
dims {{ {dim} = 3, h = 2 }}
level {level} every 1 token
level slow every 1 step
rule {rule}(lr) {{
  state S = 0
  S = 0.9 * S - lr * grad
  self = self + S
}}
block {block}({input}[{dim}]) -> {output}[{dim}] {{
  weights {weights}, W_k, W_v : linear({dim} -> h*{dim})
  weights W_o : linear(h*{dim} -> {dim})
  weights c : conv({dim}, width = 2)
  {stream} = unit(W_k(c({input})))
  v = W_v(shift({input}))
  memory {memory} : linear({dim} -> {dim}) at {level} {{
    key {stream}
    value v
    update {rule}(lr = 0.1)
  }}
  {output} = W_o({memory}({weights}({input})))
}}
"""
USUAL = {
    "dim": "d", "level": "fast", "rule": "mine", "block": "mixer", "input": "x", "output": "out",
    "weights": "W_q", "stream": "k", "memory": "M",
}  # fmt: skip
# words of Python, names in emitted files, names that methods use for their own
NAMES = (
    "lambda", "None", "torch", "F", "nn", "math", "Tensor", "Any", "l", "_", "__", "_0", "print",
    "state", "batch", "like", "device", "new", "past", "q", "t", "tokens_t", "Conv", "Model",
    "wide", "matvec", "read_linear", "shift_1", "M_start", "M_1", "ŷ", "Å",
)  # fmt: skip


def spec(**names: str) -> str:
    return SPEC.format(**(USUAL | names))


def runs(text: str, name: str = "mixer") -> None:
    """A sequence and then a token give what the interpreter gives."""
    system = nlc.parse(text)
    compiled = nlc.compile(system)
    module = randomised(compiled.block(name).double())
    (x,) = streams(system, name, 4)
    y, state = module(x[:, :3])
    last, _ = module.step(x[:, 3], state)
    truth, _ = compiled.reference(name, module)(x)
    close(torch.cat((y, last[:, None]), 1), truth, "out")


@pytest.mark.parametrize("place", ["stream", "input", "output", "dim"])
def test_any_name_of_a_value_can_be_emitted(place: str) -> None:
    for name in NAMES:
        if name not in {v for k, v in USUAL.items() if k != place}:
            runs(spec(**{place: name}))


@pytest.mark.parametrize("place", ["weights", "memory", "block"])
def test_any_name_of_a_module_can_be_emitted_or_is_refused(place: str) -> None:
    for name in (*NAMES, "Write", "train", "step", "parameters", "__init__"):
        text = spec(**{place: name})
        if keyword.iskeyword(name) or name in {*MODULE, *EMITTED} or name.startswith("__"):
            with pytest.raises(nlc.SpecError) as caught:
                nlc.parse(text)
            assert {d.code for d in caught.value.diagnostics if d.severity == "error"} == {"NL0303"}
        else:
            runs(text, name if place == "block" else "mixer")


def test_all_names_of_the_library_are_left_to_it() -> None:
    for name in library_names():
        try:
            system = nlc.parse(spec(stream=name, input=f"{name}_x"))
        except nlc.SpecError as error:
            assert error.diagnostics[0].code == "NL0303"
            continue
        nlc.compile(system).block("mixer")(torch.ones(1, 2, 3))


def test_the_refused_names_are_those_of_a_module() -> None:
    own = {*dir(torch.nn.Module), *vars(torch.nn.Module())}
    assert {name for name in own if not name.startswith("__")} <= MODULE


def test_no_two_classes_are_called_alike() -> None:
    block = "block {}(x[d]) -> y[d] {{\n weights {} : linear(d -> d)\n y = {}(x)\n}}\n"
    names = ("a_b", "aB", "AB", "conv", "model", "model_repeat", "linear", "glu")
    text = "dims { d = 2 }\nlevel slow every 1 step\n"
    text += "".join(block.format(name, "W", "W") for name in names)
    text += "model {\n vocab 5\n x_1[d] = embed(tokens)\n repeat 2 {\n"
    text += "".join(f"  x_1 = x_1 + {name}(x_1)\n" for name in names)
    text += " }\n logits = unembed(x_1)\n}\n"
    compiled = nlc.compile(nlc.parse(text))
    model = randomised(compiled.model().double())
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(tokens)[0], compiled.reference(None, model)(tokens)[0])
    assert len({type(compiled.block(name)) for name in names}) == len(names)


CALLS = """dims { d = 2 }
level fast every 1 token
level slow every 1 step
block f(x[d]) -> out[d] {
  weights W : linear(d -> d)
  out = W(x)
}
block f_1(x[d]) -> out[d] {
  weights W : linear(d -> d)
  out = W(x)
}
block g(x[d]) -> out[d] {
  f_out = 2 * x
  y = f(x) + f(x) + f_1(x) + shift(x)
  memory shift_1 : linear(d -> d) at fast {
    key x
    value y
    update sgd(lr = 0.1)
  }
  out = f_out + y + shift_1(x)
}
model {
  vocab 5
  share n = f
  x[d] = embed(tokens)
  f_out = 3 * x
  z = n(x) + n(2 * x)
  w = f(x) + f(x) + f_1(x)
  logits = unembed(z + w + f_out)
}
"""


def test_what_a_call_gives_takes_no_written_name() -> None:
    """Streams of calls stand beside streams of the same name, instances beside blocks."""
    system = nlc.parse(CALLS)
    agree(system, "g", tokens=4)
    model = randomised(nlc.compile(system).model().double())
    tokens = torch.tensor([[1, 2, 3]])
    x = model.embed.weight[tokens]
    y = model.n.W(x) + model.n.W(2 * x) + model.f.W(x) + model.f_2.W(x) + model.f_1.W(x) + 3 * x
    torch.testing.assert_close(model(tokens)[0], y @ model.unembed.weight.T)
