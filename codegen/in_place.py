"""Sums that take in a product where it was made: no further tensor as large as a state.

In: a program's graph. Out: the same graph, in which `torch.addcmul(x * y, a, b)` is
`(x * y).addcmul_(a, b)`, if nothing else sees x * y, and `root(x) + 1e-8` is `root(x).add_(1e-8)`.
Nothing asks for that product or root in a gradient.

In: old and new states of an update. Out: whether it may write new ones into the old, where these
are the loop's own and no gradient is recorded: `scaled_state(S, 0.9, own)`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from nlc.codegen import library
from torch import fx

from nlc.ir.shape import sizes

if TYPE_CHECKING:
    from nlc.codegen.program import Program

TAKE_IN: dict[Any, str] = {
    torch.addcmul: "addcmul_",
    torch.addcdiv: "addcdiv_",
    torch.add: "add_",
    torch.sub: "sub_",
}

# a number times what is added, and the function that adds it to a state in its place
SIGNS: dict[Any, float] = {operator.add: 1.0, operator.sub: -1.0, torch.add: 1.0, torch.sub: -1.0}
ADDED: dict[Any, Callable[..., object]] = {
    torch.addcmul: library.plus_product,
    torch.addcdiv: library.plus_quotient,
}
# what gives a tensor of its own
FRESH: set[Any] = {
    *SIGNS,
    *ADDED,
    *TAKE_IN.values(),
    operator.mul,
    operator.truediv,
    operator.matmul,
}


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
    for node in graph.find_nodes(op="call_function", target=operator.add):
        start, number = node.args
        if not isinstance(start, fx.Node) or start.target is not library.root:
            continue
        alone = list(start.users) == [node] and isinstance(number, int | float)
        if alone and not {"name", "above"} & set(start.meta) and _like(start) == _like(node):
            node.op, node.target = "call_method", "add_"


def write_into_old(program: Program, states: list[tuple[fx.Node, fx.Node]]) -> bool:
    """Let a finished update write new states into (old, new) ones, where its input `own` holds.

    An old one may go where its successor alone is made of it, entry by entry, and all new ones are
    tensors of their own.
    """
    moved = [new for old, new in states if new is not old]
    if len(set(moved)) < len(moved) or any(new.target not in FRESH for new in moved):
        return False
    # a vector is too small to gain by it
    large = [(old, new) for old, new in states if min([1, 1, *_like(old)[0]][-2:]) > 1]
    found = [_write_into(program, old, new) for old, new in large if old is not new]
    return True in found


def _write_into(program: Program, old: fx.Node, new: fx.Node) -> bool:
    """Let one new state go into the place of its old one."""
    # a sum that takes in a product begins with it, and that with the old state
    made = new.args[0] if new.op == "call_method" else new
    if not isinstance(made, fx.Node) or list(old.users) != [made] or made.args.count(old) > 1:
        return False
    target: Any = made.target
    rest: list[Any] = [arg for arg in made.args if arg is not old]
    words: dict[str, Any] = made.kwargs
    if target is operator.mul:
        function: Callable[..., object] = library.scaled_state
    elif target in SIGNS and (made.args[0] is old or (SIGNS[target] > 0 and not words)):
        # `alpha` is of what stands behind
        function = library.moved_state
        rest.append(SIGNS[target] * words.get("alpha", 1.0))
    elif target in ADDED and made.args[0] is old:
        function = ADDED[target]
        rest.append(words.get("value", 1.0))
    else:
        return False
    made.target, made.args, made.kwargs = function, (old, *rest, program.input("own")), {}
    return True


def _like(node: fx.Node) -> tuple[tuple[int, ...], int, bool]:
    return sizes(node.meta["shape"]), node.meta["batch"], node.meta["wide"]
