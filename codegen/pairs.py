"""Activations and their slopes at one place, as one call that shares what both need.

In: a program's graph. Out: the same graph, in which two calls of one value, `gelu` and
`gelu_slope`, are the parts of one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from nlc.codegen import library
from torch import fx

# by the slope: the activation, what gives both, and what the two are called
PAIRS: dict[Any, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    library.gelu_slope: (F.gelu, library.gelu_with_slope, "gelu"),
    library.silu_slope: (F.silu, library.silu_with_slope, "silu"),
}


def pair_slopes(graph: fx.Graph) -> None:
    """Make each activation whose slope is taken at the same value, and that slope, at once."""
    slopes = [s for s in PAIRS for s in graph.find_nodes(op="call_function", target=s)]
    for slope in slopes:
        activation, both, word = PAIRS[slope.target]
        value = slope.args[0]
        if not isinstance(value, fx.Node):
            continue
        found = [n for n in value.users if n.target is activation and n.args == (value,)]
        if not found:
            continue
        (own,) = found
        first = next(n for n in graph.nodes if n in (own, slope))
        with graph.inserting_before(first):
            pair = graph.call_function(both, (value,))
        names = (word, "slope")
        pair.meta["results"] = [
            n.meta.get("name", w) for n, w in zip((own, slope), names, strict=True)
        ]
        for place, node in enumerate((own, slope)):
            # the nodes themselves stay: whoever built the program holds them
            node.target, node.args, node.kwargs = operator.getitem, (pair, place), {}
            node.meta.setdefault("name", names[place])
