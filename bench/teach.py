"""The block that nested-learning gives its teach signal, as a spec, and whether both do the same.

In: sizes. Out: our block and theirs. A level's error is local: the gradient of its MLP's output is
twice the teach signal, wherever the MLP stands in the chain, and each level moves by its own rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import nlc

PERIODS = {"beat": 16, "phrase": 64, "page": 256}
# `preconditioned` is the rule that nested-learning uses where none is chosen
SPEC = """system hope_attention_taught
dims { d = 256, heads = 4, d_k = 64, hidden = 1024 }

level now    always
level beat   every 16 tokens
level phrase every 64 tokens
level page   every 256 tokens
level slow   every 1 step

rule preconditioned(lr, beta = 0.9, beta2 = 0.999, eps = 1e-8) {
  state V = 0
  state S = 0
  V    = beta2 * V + (1 - beta2) * grad^2
  S    = beta * S + (1 - beta) * grad / (sqrt(V) + eps)
  self = self - lr * S
}

block hope(x[d], teach[d]) -> out[d] {
  weights W_q, W_k, W_v : linear(d -> heads*d_k)
  weights W_o           : linear(heads*d_k -> d)
  memory A : kernel(softmax, scale = 1 / 8) at now {
    key   W_k(x)
    value W_v(x)
  }
  a = layernorm(x + W_o(A(W_q(x))))
"""
LEVEL = """
  memory {name} : mlp(d -> hidden -> d, bias) at {level} {{
    key       {norm}({x})
    objective 2 * <self(key), teach>
    update    {rule}(lr = 1e-3)
  }}
  {y} = {x} + {name}({norm}({x}))
"""


def spec(rule: str, norm: str = "layernorm") -> str:
    """Write the block; its levels move by a rule, and read what a norm makes of the stream."""
    text = SPEC
    for number, level in enumerate(PERIODS):
        x, y = ("a", "b", "c", "out")[number : number + 2]
        text += LEVEL.format(name=f"F_{level}", level=level, x=x, y=y, norm=norm, rule=rule)
    return text + "}\n"


def ours(rule: str, norm: str = "layernorm") -> nn.Module:
    """Make our block."""
    return nlc.compile(nlc.parse(spec(rule, norm)), target="torch").block("hope").eval()


def theirs(norm: bool = True) -> Any:
    """Make the block of the package `nested-learning`, where that is installed."""
    try:
        from nested_learning.hope.block import HOPEAttentionBlock, HOPEAttentionBlockConfig
        from nested_learning.levels import LevelSpec
    except ImportError:
        print("(nested-learning is not installed: pip install --no-deps nested-learning)\n")
        return None
    levels = [LevelSpec(name=name, update_period=count) for name, count in PERIODS.items()]
    config = HOPEAttentionBlockConfig(dim=256, heads=4, cms_levels=levels, cms_use_layernorm=norm)
    return HOPEAttentionBlock(config).eval()


def difference(tokens: int) -> float:
    """Run both from the same weights, without the gains of its norms: how far apart they end.

    The teach signal is the same at every token: theirs gives a third level that of other tokens.
    """
    block, own = theirs(norm=False).double(), ours("preconditioned", norm="1 *").double()
    x, teach = torch.randn(1, tokens, 256).double(), 1e-4 * torch.randn(1, 1, 256).double()
    teach = teach.expand_as(x)
    with torch.no_grad():
        query, key, value = block.attn.qkv.weight.chunk(3)
        for mine, other in ((own.W_q, query), (own.W_k, key), (own.W_v, value)):
            mine.weight.copy_(other)
        own.W_o.weight.copy_(block.attn.out_proj.weight)
        for level in PERIODS:
            net, memory = block.cms.blocks[level].net, getattr(own, f"F_{level}")
            for layer, other in ((memory.layer1, net[1]), (memory.layer2, net[3])):
                layer.weight.copy_(other.weight)
                layer.bias.copy_(other.bias)
        got, want = own(x, teach)[0], block(x, teach_signal=teach)
        return float((got - want).abs().max() / want.abs().max())
