"""What torch counts of an emitted module: FLOPs of products, bytes, parameters, states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import nlc
from nlc.ir.system import System
from tests.unit.codegen.agree import flat

aten = torch.ops.aten


def _attention(q: Any, k: Any, v: Any, *rest: Any, **words: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward(g: Any, q: Any, k: Any, v: Any, *rest: Any, **words: Any) -> int:
    return int(sdpa_backward_flop_count(g, q, k, v))


def _conv_backward(*args: Any, out_shape: Any = None, **words: Any) -> int:
    # torch's own formula takes a depthwise convolution's weights for a full one's
    gradient, _, weight, *_, transposed, _, _, wanted = args
    one = conv_flop_count(gradient, weight, out_shape[0], not transposed)
    return int(one * (wanted[0] + wanted[1]))


def _added_product(total: Any, a: Any, b: Any, **words: Any) -> int:
    return int(2 * a.numel() * b[-1])


# what torch's counter does not know of the CPU, and one formula that is wrong
MORE = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.convolution_backward: _conv_backward,
    aten.baddbmm_: _added_product,
}


def flops(run: Callable[[], Any]) -> tuple[int, Any]:
    """Count the products of a call."""
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        result = run()
    return counter.get_total_flops(), result


class Bytes(TorchDispatchMode):
    """Adds up what operations read and write; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in f._schema.returns if r.alias_info]
        shares = any(not a.is_write for a in aliases) or "unsafe_view" in str(f)
        if not f.is_view and not shares:
            leaves = tree_leaves((args, kwargs, out))
            self.total += sum(_held(x) for x in leaves if isinstance(x, Tensor))
        return out


def _held(x: Tensor) -> int:
    entries = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        entries *= size if stride else 1
    return entries * x.element_size()


@dataclass(frozen=True)
class Counted:
    """What `Cost.total` has to say: products forward, backward and decoding; bytes of the state."""

    forward: int
    backward: int
    decode: int
    state_bytes: int
    parameters: int


def inputs(system: System, block: str, tokens: int) -> tuple[Any, list[Tensor]]:
    """A module and its inputs for one sequence."""
    compiled = nlc.compile(system)
    if not block:
        assert system.model is not None
        return compiled.model(), [torch.randint(0, system.model.vocab, (1, tokens))]
    streams = [
        torch.randn(1, tokens, *(axis.size for axis in entry.shape), requires_grad=True)
        for entry in system.block(block).inputs
    ]
    return compiled.block(block), streams


def count(system: System, block: str, tokens: int, given: bool = True, steps: int = 1) -> Counted:
    """Count a block, or the model where it is ""; `given`: begin with states that learn.

    Decoding is that of `steps` tokens together.
    """
    module, xs = inputs(system, block, tokens)
    state = None
    if given:
        with torch.no_grad():
            _, state = module(*(x[:, :0] for x in xs))
        state = _map(state, lambda x: torch.randn_like(x).requires_grad_(), lambda n: 0)
    forward, (out, after) = flops(lambda: module(*xs, state))
    held = [x for x in flat(after).values() if isinstance(x, Tensor)]
    ends = [*(out if isinstance(out, tuple) else (out,)), *held]
    loss = torch.stack([x.sum() for x in ends if x.requires_grad]).sum()
    backward, _ = flops(loss.backward)
    after = _map(after, lambda x: x.detach(), lambda n: n)

    def decoding() -> None:
        state = after
        for _ in range(steps):
            _, state = module.step(*(x[:, 0].detach() for x in xs), state)

    decode, _ = flops(decoding)
    numbers = sum(x.numel() for x in held)
    return Counted(
        forward, backward, decode, 4 * numbers, sum(p.numel() for p in module.parameters())
    )


def _map(state: Any, tensor: Callable[[Tensor], Any], number: Callable[[int], Any]) -> Any:
    if isinstance(state, dict):
        return {key: _map(value, tensor, number) for key, value in state.items()}
    return tensor(state) if isinstance(state, Tensor) else number(state)
