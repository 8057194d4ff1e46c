"""However large the numbers of a spec are, it is answered, with a code or as it is.

Each of these once ran for minutes, or without end.
"""

from __future__ import annotations

import pytest

import nlc

SPEC = """system large
dims {{ d = 2, n = 2^31 }}
level now always
level fast every 1 token
level slow every 1 step
block f(x[d]) -> out[d] {{
  {block}
  memory M : linear(d -> d) at fast {{
    key {key}
    value x
    {objective}
    update {{ {update} }}
  }}
  out = M(x)
}}
model {{
  vocab 5
  x[d] = embed(tokens)
  {model}
  logits = unembed(x)
}}
"""
USUAL = {
    "block": "y = x", "key": "x", "objective": "", "update": "self = self - 0.1 * grad",
    "model": "repeat 2 { x = x + f(x) }",
}  # fmt: skip
MANY = "\n  ".join(f"y{i} = y{i - 1} + y{i - 1}" for i in range(1, 300))


def codes(compiled: bool = False, **parts: str) -> list[str]:
    try:
        system = nlc.parse(SPEC.format(**USUAL | parts))
        nlc.check(system)
        if compiled:
            assert nlc.compile(system).source
    except nlc.SpecError as error:
        return [d.code for d in error.diagnostics if d.severity == "error"]
    return []


@pytest.mark.parametrize(
    "parts",
    [
        {"model": "repeat 4097 { x = x + f(x) }"},
        {"model": "repeat 4096 { repeat 2 { x = x + f(x) } }"},
        {"model": "repeat 4096 { repeat 4096 { repeat 4096 { x = x + f(x) } } }"},
        {"update": "repeat 4097 { self = self - 0.1 * grad }"},
        {"update": "repeat 4096 { repeat 4096 { self = self - 0.1 * grad } }"},
        {"objective": "objective recent(1/2 * ||M(key) - value||^2, n)"},
        {"block": "weights W : linear(d -> n*n)"},
    ],
    ids=lambda parts: next(iter(parts.values())),
)
def test_too_much_has_a_code(parts: dict[str, str]) -> None:
    assert codes(**parts) == ["NL0402"]


@pytest.mark.parametrize(
    "parts",
    [
        {"model": "repeat 64 { repeat 64 { x = x + f(x) } }"},
        {"update": "repeat 300 { self = self - 0.1 * grad(at = self) }"},
        {"update": "\n".join(["self = self + self"] * 300) + "\nself = self - 0.1 * grad"},
        {"block": f"y0 = x\n  {MANY}", "key": "y299"},
        {"block": "y = shift(x, n)", "key": "y"},
        {"block": "weights c : conv(d, width = n)", "key": "c(x)"},
    ],
    ids=lambda parts: next(iter(parts.values()))[:40],
)
def test_much_is_answered(parts: dict[str, str]) -> None:
    assert codes(compiled=True, **parts) == []


def test_the_repeats_within_one_another_are_named() -> None:
    with pytest.raises(nlc.SpecError) as caught:
        nlc.parse(SPEC.format(**USUAL | {"model": "repeat 2 { repeat 4096 { x = x + f(x) } }"}))
    (fault,) = caught.value.diagnostics
    assert fault.labels[0].text == "4096, within 2: 8192"
    assert fault.hint == "up to 4096, all in all"
