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
    if work < 1 << 21 or a.shape[2] < 32 or not by_onednn(a, b):
        return torch.bmm(a, b)
    linear = torch.ops.mkldnn._linear_pointwise
    found = [linear(x, y.mT, None, "none", [], "") for x, y in zip(a, b, strict=True)]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Say whether oneDNN takes these, and nothing has to see how they are multiplied."""
    kinds = a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    seen = torch.is_grad_enabled() or torch.compiler.is_compiling()
    mkldnn = torch.backends.mkldnn
    there = mkldnn.is_available() and mkldnn.enabled and torch.backends.mkl.is_available()
    if not kinds or seen or not there or torch._C._len_torch_dispatch_stack():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")
