"""Products of large matrices on a CPU; those a module uses are copied into it.

In: batches of matrices. Out: their products, as `torch.bmm` gives them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_products(a: Tensor, b: Tensor) -> Tensor:
    """[B, m, k], [B, k, n] -> [B, m, n], as `torch.bmm`.

    On a CPU that is MKL's product. Large ones go through oneDNN where no gradient of them is
    recorded: on an AMD EPYC it takes half the time.
    """
    work = a.shape[1] * a.shape[2] * b.shape[2]
    if work < 1 << 21 or a.shape[2] < 32 or torch.is_grad_enabled() or not by_onednn(a, b):
        return torch.bmm(a, b)
    found = [onednn(x, y.mT) for x, y in zip(a, b, strict=True)]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def onednn(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """x W^T + b, of which no gradient is recorded."""
    # of matrices with gaps between rows oneDNN has no fast product
    W = W if W.is_contiguous() or W.mT.is_contiguous() else W.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Say whether oneDNN takes these, and nothing has to see how they are multiplied."""
    kinds = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    mkldnn = torch.backends.mkldnn
    there = mkldnn.is_available() and mkldnn.enabled and torch.backends.mkl.is_available()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not kinds or not there:
        return False
    if torch._C._len_torch_dispatch_stack() or torch.overrides.has_torch_function((a, b)):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")
