"""Slots: what tokens ask of the parts that they select; the functions a module uses are copied.

In: scores and weights with the slots as last of the leading axes, states with these in front. Out:
weights over the slots, zero outside the selection; the selected parts as rows, for one token, or
the tokens of a window in blocks of one part each, and what is made of them back in its place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def route(scores: Tensor, select: str, amount: float = 0.0) -> Tensor:
    """Weights over the slots: softmax of the scores, 0 outside the selection, rescaled to sum 1."""
    weights = torch.softmax(scores, -1)
    if select == "all":
        return weights
    falling, place = weights.sort(dim=-1, descending=True, stable=True)
    if select == "top_k":
        chosen = torch.arange(weights.shape[-1], device=weights.device) < amount
    elif select == "top_p":
        # a slot is needed while those before it do not reach the sum
        chosen = falling.cumsum(-1) - falling < amount
    else:
        chosen = falling >= amount
    kept = torch.zeros_like(weights).scatter(-1, place, torch.where(chosen, falling, 0.0))
    total = kept.sum(-1, keepdim=True)
    return kept / torch.where(total > 0, total, 1.0)


class Chosen(NamedTuple):
    """The parts that one token of each sequence selects, one row for each of R = B * lead * count.

    `parts` and `groups` are the rows' places among all parts and among all leading axes but the
    slots, `weights` their weights; `front` is [B, *lead, count].
    """

    parts: Tensor
    groups: Tensor
    weights: Tensor
    front: tuple[int, ...]


def choose(weights: Tensor, count: int, lead: tuple[int, ...]) -> Chosen:
    """Choose the parts of the largest weights: [B, *lead], the slots last."""
    n = lead[-1]
    top, slots = weights.expand(-1, *lead).topk(count, -1)
    groups = torch.arange(slots[..., 0].numel(), device=slots.device).repeat_interleave(count)
    return Chosen(groups * n + slots.flatten(), groups, top.flatten(), tuple(slots.shape))


def rows(x: Tensor, chosen: Chosen, has: tuple[bool, ...]) -> Tensor:
    """What each row sees of x [B, *leading axes, ...], of which it `has` some: [R, 1 ..., ...]."""
    for place, here in enumerate(has):
        x = x if here else x.unsqueeze(1 + place)
    slots = len(has)
    rest = x.shape[1 + slots :]
    each = x.shape[slots] > 1
    x = x.expand(*chosen.front[:-1], x.shape[slots], *rest).flatten(0, slots)
    found = x.index_select(0, chosen.parts if each else chosen.groups)
    return found.view(found.shape[0], *[1] * sum(has), *rest)


def with_rows(x: Tensor, chosen: Chosen, new: Tensor) -> Tensor:
    """Put rows back into all parts: x [B, *lead, ...], new [R, 1 ..., ...]."""
    depth = len(chosen.front) - 1
    flat = x.flatten(0, depth)
    return flat.index_copy(0, chosen.parts, new.reshape(-1, *flat.shape[1:])).view_as(x)


def sum_rows(x: Tensor, chosen: Chosen) -> Tensor:
    """Sum over the chosen parts, weighted: [R, 1 ..., ...] -> [B, *lead without slots, ...]."""
    depth = len(chosen.front)
    x = x * chosen.weights.view(-1, *[1] * (x.ndim - 1))
    return x.reshape(*chosen.front, *x.shape[depth:]).sum(depth - 1)


class Blocks(NamedTuple):
    """Tokens in blocks of P, each of one part: G = B * lead without slots, R = G * blocks.

    `parts` [R] is each block's place among all parts, `tokens` [R, P] are its tokens' places among
    all groups' tokens, `weights` [R, P] their weights there, 0 where a place is empty, and
    `places` [G, T, count] say where the choices of a token stand; `front` is [B, *lead].
    """

    parts: Tensor
    tokens: Tensor
    weights: Tensor
    places: Tensor
    front: tuple[int, ...]


def dispatch(weights: Tensor, count: int, lead: tuple[int, ...]) -> Blocks:
    """Sort tokens by the parts that they select: weights [B, T, *lead], the slots last.

    Blocks are about as long as a part has tokens on average, so that not many are half empty.
    """
    n, tokens, device = lead[-1], weights.shape[1], weights.device
    weights = weights.expand(-1, -1, *lead).movedim(1, -2)
    front = (*weights.shape[:-2], n)
    top, slots = weights.flatten(0, -3).topk(count, -1)
    top, slots = top.flatten(1), slots.flatten(1)
    group = torch.arange(slots.shape[0], device=device).unsqueeze(1)
    token = torch.arange(tokens, device=device).repeat_interleave(count)
    choice = torch.arange(tokens * count, device=device)
    size = -(-tokens * count // n)
    if size == 1:
        # every choice is a block
        place, blocks, part = choice.expand_as(slots), tokens * count, slots
    else:
        blocks = (tokens * count + n * (size - 1)) // size
        order = slots.argsort(dim=-1, stable=True)
        counts = slots.new_zeros(slots.shape[0], n).scatter_add(1, slots, torch.ones_like(slots))
        ends = ((counts + size - 1) // size).cumsum(-1)
        first = (ends - (counts + size - 1) // size) * size - counts.cumsum(-1) + counts
        place = torch.empty_like(slots).scatter(
            1, order, choice + first.gather(1, slots.gather(1, order))
        )
        every = torch.arange(blocks, device=device).expand(slots.shape[0], blocks).contiguous()
        part = torch.searchsorted(ends, every, right=True).clamp_max(n - 1)
    empty = slots.new_zeros(slots.shape[0], blocks * size)
    held = empty.scatter(1, place, token.expand_as(slots)) + group * tokens
    return Blocks(
        (part + group * n).flatten(),
        held.view(-1, size),
        top.new_zeros(empty.shape).scatter(1, place, top).view(-1, size),
        (place + group * blocks * size).view(-1, tokens, count),
        front,
    )


def at_tokens(x: Tensor, blocks: Blocks) -> Tensor:
    """Give every token what is the same for all: [B, ...] -> [B, T, ...]."""
    return x.unsqueeze(1).expand(-1, blocks.places.shape[1], *[-1] * (x.ndim - 1))


def tokens_in_blocks(x: Tensor, blocks: Blocks, has: tuple[bool, ...]) -> Tensor:
    """What tokens bring to their places: x [B, T, *leading axes, ...] -> [R, P, 1 ..., ...]."""
    for place, here in enumerate(has):
        x = x if here else x.unsqueeze(2 + place)
    slots, n = len(has), blocks.front[-1]
    rest = x.shape[2 + slots :]
    each = x.shape[1 + slots] > 1
    x = x.expand(blocks.front[0], -1, *blocks.front[1:-1], -1, *[-1] * len(rest))
    x = x.movedim(1, slots).flatten(0, slots + 1)
    index = blocks.tokens * n + blocks.parts.unsqueeze(1) % n if each else blocks.tokens
    found = x.index_select(0, index.flatten())
    return found.view(*index.shape, *[1] * sum(has), *rest)


def parts_in_blocks(x: Tensor, blocks: Blocks) -> Tensor:
    """The part of each block: x [B, *lead, ...] -> [R, 1 ..., ...]."""
    depth = len(blocks.front) - 1
    found = x.flatten(0, depth).index_select(0, blocks.parts)
    return found.view(found.shape[0], *[1] * depth, *found.shape[1:])


def sum_into_parts(x: Tensor, blocks: Blocks) -> Tensor:
    """Sum over the blocks of each part: [R, 1 ..., ...] -> [B, *lead, ...]."""
    rest = x.shape[len(blocks.front) :]
    total = x.new_zeros(math.prod(blocks.front), *rest)
    return total.index_add(0, blocks.parts, x.view(-1, *rest)).view(*blocks.front, *rest)


def sum_into_tokens(x: Tensor, blocks: Blocks) -> Tensor:
    """Sum each token's choices, weighted: [R, P, 1 ..., ...] -> [B, T, *lead but slots, ...]."""
    rest = x.shape[1 + len(blocks.front) :]
    x = x * blocks.weights.view(*blocks.weights.shape, *[1] * (x.ndim - 2))
    found = x.reshape(-1, *rest).index_select(0, blocks.places.flatten())
    found = found.view(*blocks.front[:-1], *blocks.places.shape[1:], *rest)
    depth = len(blocks.front) - 1
    return found.sum(depth + 1).movedim(depth, 1)
