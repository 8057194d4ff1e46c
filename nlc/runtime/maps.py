"""What every kind of map computes: one row each, as the language page writes it.

In: a map, its input x [rows, *lead, *more, *inputs] and its parts [rows, *lead, *part]. Out: the
result [rows, *lead, *more, *outputs]. `conv` needs the past and is an operation; `vector`,
`matrix`, `scalar` are read by their bare names; `kernel` keeps pairs (see `softmax_read`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nlc.ir.shape import sizes
from nlc.ir.system import Map


def _sqrt(x: Tensor) -> Tensor:
    """Take the square root; its derivative at 0 is 0, of every order."""
    one = torch.ones_like(x)
    return torch.where(x == 0, 0 * one, torch.where(x == 0, one, x).sqrt())


# elementwise functions of one argument; also what `act =` may name
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": _sqrt,
    "abs": torch.abs,
    "sign": torch.sign,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_slope": lambda x: (
        (1 + torch.erf(x / 2**0.5)) / 2 + x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
    ),
    "silu_slope": lambda x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    "relu": torch.relu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "erf": torch.erf,
}


def front(x: Tensor, rank: int) -> Tensor:
    """Give a value `rank` axes behind its rows, by axes of size 1 in front of those it has."""
    missing = rank + 1 - x.dim()
    return x.reshape(x.shape[0], *([1] * missing), *x.shape[1:]) if missing > 0 else x


def common(*shapes: torch.Size) -> torch.Size:
    """Return the shape to which all of them broadcast."""
    found: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return found


def _activation(map: Map, default: str) -> Callable[[Tensor], Tensor]:
    name = str(map.option("act", default))
    return (lambda x: x) if name == "none" else FUNCTIONS[name]


def _times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply: y_o = sum_i weight_oi x_i + bias_o, with x [..., more, in]."""
    y = x @ weight.transpose(-1, -2)
    return y if bias is None else y + bias[..., None, :]


Parts = Mapping[str, Tensor]


def _linear(map: Map, x: Tensor, parts: Parts) -> Tensor:
    return _times(x, parts["weight"], parts.get("bias"))


def _mlp(map: Map, x: Tensor, parts: Parts) -> Tensor:
    act = _activation(map, "gelu")
    layers = len(map.chain) - 1
    y = x
    for layer in range(1, layers + 1):
        y = _times(y, parts[f"layer{layer}.weight"], parts.get(f"layer{layer}.bias"))
        y = act(y) if layer < layers else y
    if map.option("norm", False):
        centred = y - y.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y * parts["norm.weight"][..., None, :] + parts["norm.bias"][..., None, :]
    return x + y if map.option("residual", False) else y


def _glu(map: Map, x: Tensor, parts: Parts) -> Tensor:
    act = _activation(map, "silu")
    return _times(act(_times(x, parts["gate"])) * _times(x, parts["up"]), parts["down"])


def _lora(map: Map, x: Tensor, parts: Parts) -> Tensor:
    act = _activation(map, "none")
    up = parts["up"] if "up" in parts else parts["up.weight"]
    return _times(act(_times(x, parts["down"])), up, parts.get("up.bias"))


MAPS: Mapping[str, Callable[[Map, Tensor, Parts], Tensor]] = {
    "linear": _linear,
    "mlp": _mlp,
    "glu": _glu,
    "lora": _lora,
}


def apply_map(map: Map, x: Tensor, values: Sequence[Tensor], lead: int) -> Tensor:
    """Apply a map to every vector of x: each leading axis has its own copy of the parts."""
    parts = {part.name: value for part, value in zip(map.parts, values, strict=True)}
    if map.kind == "table":
        return _table(x, parts["weight"], lead)
    more = x.shape[1 + lead : x.dim() - len(map.inputs)]
    flat = x.to(torch.float64).reshape(*x.shape[: 1 + lead], -1, map.chain[0].size)
    y = MAPS[map.kind](map, flat, parts)
    return y.reshape(*y.shape[: 1 + lead], *more, *sizes(map.outputs))


def _table(x: Tensor, weight: Tensor, lead: int) -> Tensor:
    """Look up rows: x [rows, *lead, *more] of integers, weight [rows, *lead, n, d]."""
    shared = common(x.shape[: 1 + lead], weight.shape[: 1 + lead])
    index = x.long().expand(*shared, *x.shape[1 + lead :])
    flat = index.reshape(*shared, -1, 1).expand(*shared, -1, weight.shape[-1])
    rows = weight.expand(*shared, *weight.shape[-2:]).gather(-2, flat)
    return rows.reshape(*index.shape, weight.shape[-1])


def softmax_read(query: Tensor, keys: Tensor, values: Tensor, scale: float, lead: int) -> Tensor:
    """Read a softmax memory: sum_i softmax_i(scale <k_i, q>) v_i; no pairs read 0.

    query [rows, *lead, *more, d_k], keys [rows, *lead, n, d_k], values [rows, *lead, n, d_v].
    """
    flat = query.reshape(*query.shape[: 1 + lead], -1, query.shape[-1])
    if keys.shape[-2] == 0:
        shared = common(flat.shape[: 1 + lead], keys.shape[: 1 + lead])
        read = query.new_zeros(*shared, flat.shape[-2], values.shape[-1])
    else:
        score = scale * (flat @ keys.transpose(-1, -2))
        read = torch.softmax(score, -1) @ values
    return read.reshape(*read.shape[:-2], *query.shape[1 + lead : -1], values.shape[-1])
