"""Sums that take in a product where it was made: no further tensor as large as a state.

In: a program's graph. Out: the same graph, in which `torch.addcmul(x * y, a, b)` is
`(x * y).addcmul_(a, b)`, if nothing else sees x * y. Nothing asks for that product in a gradient.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from nlc.ir.shape import sizes

TAKE_IN = {torch.addcmul: "addcmul_", torch.addcdiv: "addcdiv_"}


def add_in_place(graph: fx.Graph) -> None:
    """Let each product that is made for one sum alone take in what is added to it."""
    sums = [n for f in TAKE_IN for n in graph.find_nodes(op="call_function", target=f)]
    for node in sums:
        start = node.args[0]
        if not isinstance(start, fx.Node) or start.target is not operator.mul:
            continue
        alone = list(start.users) == [node] and start not in node.args[1:]
        if alone and not {"name", "above"} & set(start.meta) and _like(start) == _like(node):
            # the node itself stays: whoever built the program holds it
            node.op, node.target = "call_method", TAKE_IN[node.target]


def _like(node: fx.Node) -> tuple[object, ...]:
    return sizes(node.meta["shape"]), node.meta["batch"], node.meta["wide"]
