"""cms_online: A chain of MLPs that learn while they read, at three levels (arXiv:2512.24695,
eqs. 70-71)

Made by nlc from spec.nl. It imports torch only; change it as you like.
Levels, fastest first:
    now: always
    beat: every 16 tokens
    phrase: every 64 tokens
    page: every 256 tokens
    slow: every 1 step
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rmsnorm(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps)."""
    return x * torch.rsqrt(wide(x).square().mean(dim, keepdim=True) + eps).to(x.dtype)


def index(n: int, like: Tensor) -> Tensor:
    """0 ... n-1, in float32 or better."""
    return torch.arange(n, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def positions(start: int, tokens: int, like: Tensor) -> Tensor:
    """Count the tokens from the sequence's start: [1, T], in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(start, start + tokens, device=like.device, dtype=dtype)[None]


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m], as a row times a matrix: the fast side of a product."""
    return (x.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis: x [..., n], angle [..., n/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = torch.cos(angle), torch.sin(angle)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target], per token: [..., n], [...] -> [...]."""
    losses = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def uniform(weight: Tensor, fan_in: int) -> None:
    """Draw from the uniform distribution in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    nn.init.uniform_(weight, -bound, bound)


class Linear(nn.Linear):
    """As in torch; large ones go through oneDNN on a CPU: MKL is slow on processors not Intel's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 2 and self.large(x):
            return OneDNNLinear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def large(self, x: Tensor) -> bool:
        """Say whether x has so many rows that oneDNN is worth its preparations, and takes it."""
        if torch.compiler.is_compiling() or min(self.weight.shape) < 32:
            return False
        return x.numel() * self.out_features >= 1 << 24 and by_onednn(x, self.weight)


class OneDNNLinear(torch.autograd.Function):
    """x W^T + b, with gradients of every order and transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, W, b):
        return onednn(x, W, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx, dx, dW, db):
        x, W = ctx.saved_tensors
        return F.linear(dx, W, db) + F.linear(x, dW)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        of_x, of_W, of_b = ctx.needs_input_grad
        # that of torch where this is differentiated again
        product = F.linear if torch.is_grad_enabled() else onednn
        rows, drows = x.flatten(0, -2), dy.flatten(0, -2)
        dx = product(dy, W.mT) if of_x else None
        dW = product(drows.mT, rows.mT) if of_W else None
        return dx, dW, drows.sum(0) if of_b else None


class Tensors(nn.Module):
    """Holds parameters by name, without values; whoever holds it draws them."""

    def __init__(self, device=None, dtype=None, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))


class Pairs(NamedTuple):
    """What a softmax memory holds over a sequence; the first `before` pairs are older than it."""

    keys: Tensor
    values: Tensor
    before: int
    position: int = 0


def as_pairs(x: Tensor, cache: dict[str, Tensor], sequence: bool) -> Tensor:
    """Lay out keys or values as pairs: [B, T, *lead, d], or [B, *lead, d] -> [B, *lead, T, d]."""
    front = cache["key"].shape[:-2]
    x = x if sequence else x.unsqueeze(1)
    return x.expand(front[0], x.shape[1], *front[1:], x.shape[-1]).movedim(1, -2)


def append_pairs(
    keys: Tensor,
    values: Tensor,
    cache: dict[str, Tensor],
    window: int | None,
    per_token: int = 1,
    reset: int | None = None,
    position: int = 0,
) -> tuple[Pairs, dict[str, Tensor]]:
    """Add pairs [B, *lead, n, d] to a cache; the new cache keeps only the window.

    `reset`: pairs are forgotten at the end of each so many tokens; `position` is the first token's.
    """
    tokens = keys.shape[-2] // per_token
    older = cache["key"].shape[-2]
    keys = torch.cat((cache["key"], keys.to(cache["key"].dtype)), -2)
    values = torch.cat((cache["value"], values.to(cache["value"].dtype)), -2)
    first = 0 if window is None else max(keys.shape[-2] - window, 0)
    if reset is not None:
        last = (position + tokens) // reset * reset - position
        first = max(first, older + per_token * last) if last > 0 else first
    kept = {"key": keys[..., first:, :], "value": values[..., first:, :]}
    return Pairs(keys, values, older, position), kept


def attend(
    q: Tensor,
    pairs: Pairs,
    scale: float,
    per_token: int = 1,
    window: int | None = None,
    late: bool = True,
    lead: int = 1,
    first: tuple[Tensor, Tensor] | None = None,
    reset: int | None = None,
) -> Tensor:
    """Read for all tokens at once; `late` sees the token's own pairs, `first` are always seen."""
    keys, values, older, position = pairs
    tokens, more = q.shape[1], q.shape[2 + lead : -1]
    front = keys.shape[: 1 + lead]
    # [B, T, *lead, *more, d] -> [B, H, more * T, d]
    rows = q.expand(front[0], tokens, *front[1:], *more, q.shape[-1])
    rows = rows.to(keys.dtype).reshape(front[0], tokens, -1, max(more.numel(), 1), q.shape[-1])
    rows = rows.permute(0, 2, 3, 1, 4).flatten(2, 3)
    keys = keys.reshape(front[0], -1, *keys.shape[-2:])
    values = values.reshape(front[0], -1, *values.shape[-2:])
    total, always = keys.shape[2], 0
    if first is not None:
        always = first[0].shape[-2]
        kept = [x.reshape(1, -1, *x.shape[-2:]).expand(front[0], -1, -1, -1) for x in first]
        keys = torch.cat((kept[0].to(keys.dtype), keys), 2)
        values = torch.cat((kept[1].to(values.dtype), values), 2)
    alone = window is None and reset is None
    if late and alone and older == 0 and always == 0 and per_token == 1 and not more:
        y = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scale)
    else:
        # token t sees the pairs from `low` up to, not including, `high`
        token = torch.arange(tokens, device=q.device)[:, None]
        high = older + per_token * (token + (1 if late else 0))
        pair = torch.arange(total, device=q.device)[None]
        seen = pair < high
        if window is not None:
            seen = seen & (pair >= high - window)
        if reset is not None:
            begin = (position + token) // reset * reset - position
            seen = seen & ((begin <= 0) | (pair >= older + per_token * begin))
        seen = torch.cat((seen.new_ones(tokens, always), seen), 1).repeat(max(more.numel(), 1), 1)
        if total + always == 0:
            y = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
        else:
            # an empty set reads 0: let it see everything, and drop what it reads
            some = seen.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(
                rows, keys, values, attn_mask=seen | ~some, scale=scale
            )
            y = torch.where(some, y, 0.0)
    y = y.unflatten(2, (-1, tokens)).permute(0, 3, 1, 2, 4)
    return y.reshape(front[0], tokens, *front[1:], *more, values.shape[-1]).to(q.dtype)


def attend_step(
    q: Tensor,
    cache: dict[str, Tensor],
    scale: float,
    lead: int = 1,
    first: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Read for one token: q [B, *lead, *more, d_k] sees all pairs of the cache."""
    keys, values = cache["key"], cache["value"]
    front, more = keys.shape[: 1 + lead], q.shape[1 + lead : -1]
    if first is not None:
        kept = [x.expand(*front, *x.shape[-2:]) for x in first]
        keys = torch.cat((kept[0].to(keys.dtype), keys), -2)
        values = torch.cat((kept[1].to(values.dtype), values), -2)
    rows = q.to(keys.dtype).expand(*front, *more, q.shape[-1])
    rows = rows.reshape(*front, -1, q.shape[-1])
    if keys.shape[-2] == 0:
        y = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
    else:
        y = F.scaled_dot_product_attention(rows, keys, values, scale=scale)
    return y.reshape(*front, *more, values.shape[-1]).to(q.dtype)


class Opened:
    """A window that is being read: the points of what learns from it, their values, its losses.

    `slopes` are gradients of the losses that have been differentiated; `losses` wait for it. `kept`
    says that something outside may ask for a gradient, `twice` that one is differentiated again.

    Where none is, a point's products with tokens are `taken`: what the matrix was given, and what
    came out. Their gradients are kept in `given`, and are one product at the end of the window.
    """

    def __init__(self, kept: bool, twice: bool) -> None:
        self.points: list[Tensor] = []
        self.values: list[Any] = []
        self.slopes: list[Tensor | None] = []
        self.losses: list[Tensor] = []
        self.taken: list[list[tuple[Tensor, Tensor]]] = []
        self.given: list[list[tuple[Tensor, Tensor]]] = []
        self.kept, self.twice = kept, twice

    def point_of(self, value: Any) -> Any:
        """Make a state a point of its own, in which what follows is differentiable."""
        self.values.append(value)
        if isinstance(value, dict):
            return {name: self.point(part) for name, part in value.items()}
        return self.point(value)

    def gradients(self) -> list[Any]:
        """Give the gradients by what they belong to, as its values are given."""
        found = iter(map(whole_gradient, self.points, self.slopes, self.given))
        return [
            {name: next(found) for name in value} if isinstance(value, dict) else next(found)
            for value in self.values
        ]

    def point(self, value: Tensor) -> Tensor:
        """Make one tensor a point."""
        found = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        self.points.append(found)
        self.slopes.append(None)
        self.taken.append([])
        self.given.append([])
        if not (self.twice or value.requires_grad):
            found.taken = self.taken[-1]
        return found

    def add(self, slopes: Any) -> None:
        """Add gradients of the points, and of what came of their products."""
        for i, taken in enumerate(self.taken):
            new, old = next(slopes), self.slopes[i]
            self.slopes[i] = new if old is None else old if new is None else old + new
            for x, _ in taken:
                slope = next(slopes)
                if slope is not None:
                    self.given[i].append((slope, x))
            taken.clear()


def whole_gradient(
    point: Tensor, slope: Tensor | None, given: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Give the gradient of a point: what is known of it, and products over tokens."""
    if not given:
        return torch.zeros_like(point) if slope is None else slope
    dy, x = (
        parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*given, strict=True)
    )
    whole = slope_of(dy, x)
    return whole if slope is None else slope + whole


def settle(opened: tuple[Opened, ...], deep: bool, keep: bool) -> None:
    """Differentiate the losses that wait, in all points at once, and add to the slopes.

    `deep` gradients are differentiable, `keep` keeps the graph. The losses are those of each.
    """
    asked = []
    for one in opened:
        for point, taken in zip(one.points, one.taken, strict=True):
            asked += [point, *(y for _, y in taken)]
    losses = opened[-1].losses
    if losses and asked:
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if loss.requires_grad:
            found = iter(
                torch.autograd.grad(
                    loss, asked, create_graph=deep, retain_graph=keep, allow_unused=True
                )
            )
            for one in opened:
                one.add(found)
    for one in opened:
        one.losses = []


def learned_matvecs(matrix: Tensor, x: Tensor) -> Tensor:
    """As `matvecs`, of what learns."""
    front = torch.broadcast_shapes(matrix.shape[:-2], (x.shape[0], *x.shape[2:-1]))
    x = x.expand(front[0], x.shape[1], *front[1:], x.shape[-1])
    taken = getattr(matrix, "taken", None)
    if taken is None or not torch.is_grad_enabled() or matrix.shape[:-2] != front:
        return learned_product(matrix.expand(*front, *matrix.shape[-2:]), x, False)
    y = learned_product(matrix.detach(), x, False)
    y = y if y.requires_grad else y.requires_grad_()
    taken.append((x.detach(), y))
    return y


def learned_product(matrix: Tensor, x: Tensor, turned: bool) -> Tensor:
    """W x for every token, or W^T x: [B, *lead, m, k], [B, T, *lead, k] -> [B, T, *lead, m].

    Its gradients are apart: who asks for that of x does not make that of W. They, and theirs, lie
    in memory as W does.
    """
    if not torch.is_grad_enabled():
        return plain_product(matrix, x, turned)
    y = Applied.apply(x, [matrix], turned)
    return y + Moved.apply(matrix, [x], turned) if matrix.requires_grad else y


class Applied(torch.autograd.Function):
    """W x as a function of x alone."""

    @staticmethod
    def forward(ctx, x, matrix, turned):
        ctx.matrix, ctx.turned = matrix, turned
        return plain_product(matrix[0], x, turned)

    @staticmethod
    def backward(ctx, dy):
        return learned_product(ctx.matrix[0], dy, not ctx.turned), None, None


class Moved(torch.autograd.Function):
    """Zeros, with the gradient of W x as a function of W."""

    @staticmethod
    def forward(ctx, matrix, x, turned):
        ctx.x, ctx.turned = x, turned
        width = matrix.shape[-1 if turned else -2]
        return matrix.new_zeros(()).expand(*x[0].shape[:-1], width)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.x
        return (slope_of(x, dy) if ctx.turned else slope_of(dy, x)), None, None


def plain_product(matrix: Tensor, x: Tensor, turned: bool) -> Tensor:
    """As `learned_product`, without gradients of its own."""
    matrix = matrix if turned else matrix.mT
    if matrix.ndim == 3:
        return matrix_products(x, matrix)
    y = matrix_products(x.movedim(1, -2).flatten(0, -3), matrix.flatten(0, -3))
    return y.unflatten(0, matrix.shape[:-2]).movedim(-2, 1)


def slope_of(dy: Tensor, x: Tensor) -> Tensor:
    """Sum dy x^T over tokens: [B, T, *lead, m], [B, T, *lead, k] -> [B, *lead, m, k]."""
    return Slope.apply(dy, x) if torch.is_grad_enabled() else Slope.of(dy, x)


class Slope(torch.autograd.Function):
    """As `slope_of`; its gradients are products with tokens again."""

    @staticmethod
    def of(dy, x):
        if x.ndim == 3:
            return matrix_products(dy.mT, x)
        dy, x = dy.movedim(1, -2), x.movedim(1, -2)
        found = matrix_products(dy.flatten(0, -3).mT, x.flatten(0, -3))
        return found.unflatten(0, x.shape[:-2])

    @staticmethod
    def forward(ctx, dy, x):
        ctx.save_for_backward(dy, x)
        return Slope.of(dy, x)

    @staticmethod
    def backward(ctx, slope):
        dy, x = ctx.saved_tensors
        of_dy, of_x = ctx.needs_input_grad
        found = learned_product(slope, x, False) if of_dy else None
        return found, learned_product(slope, dy, True) if of_x else None


class Learner(NamedTuple):
    """A memory that learns from the task, or that begins as a copy of one that does.

    It is called `memory` in the module `instance`, and moves after each `window` tokens, unless it
    is a copy, which moves by itself (`moves`); after `anew` tokens it goes back to its start.
    `through` says whether outer gradients pass through the gradient in its update, `asks` how often
    that asks for the gradient once more, at another value.
    """

    instance: str
    memory: str
    window: int
    moves: bool = True
    anew: int = 0
    copies: bool = False
    through: bool = True
    asks: int = 0


class OnlineModel(nn.Module):
    """A model whose parts learn from the task while it reads, also at inference.

    A window is read; its loss, the sum over its tokens, is differentiated in what learns at the end
    of such windows, at the values it had when the window began, and the rule moves it. The target
    of a window's last token is the next token, so that update waits until it comes.

    The state is that of the modules, `LEVEL.start`, what it was when the level's present window
    began, and `tokens.recent`, the tokens since the slowest one's start.
    """

    learners: tuple[Learner, ...] = ()
    online_levels: tuple[tuple[str, int], ...] = ()

    @property
    def window_lengths(self) -> list[int]:
        """How many tokens are read before something moves or begins anew, the fewest first."""
        return sorted({at.window for at in self.learners})

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        now = self.first_state(batch, like)
        recent = torch.zeros(batch, 0, dtype=torch.int64, device=like.device)
        return {
            **now,
            "tokens.recent": recent,
            **{f"{name}.start": now for name, _ in self.online_levels},
        }

    def forward(self, tokens: Tensor, state: dict[str, Any] | None = None) -> Any:
        """Run a whole sequence: tokens [B, T]."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self(tokens.clone(), state)
        if state is None:
            state = self.initial_state(tokens.shape[0], next(self.parameters()))
        if tokens.shape[1] == 0:
            outputs, _ = self.read_piece(tokens, modules_of(state))
            return outputs, state
        pieces, moved = [], False
        while tokens.shape[1]:
            state = self.arrive_at(tokens[:, :1], state, moved)
            done, moved = state["position"], False
            length = self.whole_window(done, tokens.shape[1])
            if length:
                part = tokens[:, : length + 1]
                outputs, now = self.learn_here(part, modules_of(state), length)
                moved = True
            else:
                length = min(
                    tokens.shape[1], self.window_lengths[0] - done % self.window_lengths[0]
                )
                outputs, now = self.read_piece(tokens[:, :length], modules_of(state))
                outputs = as_tuple(outputs)
            recent = torch.cat([state["tokens.recent"], tokens[:, :length]], dim=1)
            state = {**state, **now, "tokens.recent": recent}
            pieces.append(outputs)
            tokens = tokens[:, length:]
        whole = tuple(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        return (whole[0] if len(whole) == 1 else whole), state

    def step(self, tokens: Tensor, state: dict[str, Any] | None = None) -> Any:
        """Run one token: tokens [B]."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.step(tokens.clone(), state)
        if state is None:
            state = self.initial_state(tokens.shape[0], next(self.parameters()))
        state = self.arrive_at(tokens[:, None], state, False)
        outputs, now = self.read_step(tokens, modules_of(state))
        recent = torch.cat([state["tokens.recent"], tokens[:, None]], dim=1)
        return outputs, {**state, **now, "tokens.recent": recent}

    def arrive_at(self, token: Tensor, state: dict[str, Any], moved: bool) -> dict[str, Any]:
        """Do what waits for a token [B, 1]: updates, unless they are made, and new windows."""
        done = state["position"]
        ends = [window for window in self.window_lengths if done % window == 0]
        if not ends:
            return state
        now = modules_of(state)
        waiting = [(window, name) for name, window in self.online_levels if done % window == 0]
        if waiting and done and not moved:
            # read the longest window that ends here again, from where it began
            longest, name = max(waiting)
            tokens = torch.cat([state["tokens.recent"][:, -longest:], token], dim=1)
            _, now = self.learn_here(tokens, state[f"{name}.start"], longest)
        for window in reversed(ends):
            now = self.begin_window(now, window)
        starts = {f"{n}.start": now for n, window in self.online_levels if window in ends}
        recent = state["tokens.recent"]
        if ends[-1] == self.window_lengths[-1]:
            recent = recent[:, :0]
        return {**state, **now, **starts, "tokens.recent": recent}

    def whole_window(self, done: int, tokens: int) -> int:
        """Find the longest window that begins here, whose last target is among the tokens.

        0 where there is none, or where a longer one, that began before, ends with it.
        """
        fits = [w for w in self.window_lengths if done % w == 0 and w < tokens]
        if not fits or any((done + fits[-1]) % w == 0 for w in self.window_lengths if w > fits[-1]):
            return 0
        return fits[-1]

    def learn_here(
        self, tokens: Tensor, now: dict[str, Any], window: int
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Read a window that lies in no longer one, and learn from it."""
        ahead, now = self.read_ahead(tokens[:, :-1], now)
        if torch.is_grad_enabled():
            return self.learn_window(tokens, now, window, ahead)
        parameters = [p for p in self.parameters() if p.requires_grad and p.is_leaf]
        try:
            # what then has a gradient depends on the points of a window
            for parameter in parameters:
                parameter.requires_grad_(False)
            return self.learn_window(tokens, now, window, ahead)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def read_ahead(self, tokens: Tensor, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run what comes before all that learns; nothing, where the model does not say what."""
        return None, state

    def learn_window(
        self,
        tokens: Tensor,
        now: dict[str, Any],
        window: int,
        ahead: Any,
        around: tuple[Opened, ...] = (),
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Read a window and learn from it: tokens [B, window + 1], the last one a target alone.

        `ahead` is what has run for these tokens, as `read_ahead` gives it.

        Gives what the model gives, and the state in which all that learns at the end of this
        window, or of those inside it, has moved. `around` are the longer windows it lies in.
        """
        outer = torch.is_grad_enabled() and not around
        keep = bool(around) or outer
        kept = outer or any(opened.kept for opened in around)
        # whether a gradient is differentiated again, by what is outside or by a longer window
        twice = kept or any(map(self.is_deep, self.window_lengths[:-1]))
        mine = Opened(kept, twice)
        opened = (*around, mine)
        deep = self.is_deep(window) and keep
        with torch.enable_grad():
            begun = self.begin_window(now, window, mine)
            outputs, now = self.read_window(tokens, begun, window, ahead, opened, keep)
            settle((mine,), deep, keep)
            grads = [mine.gradients()]
            for turn in range(max((at.asks for at in self.movers(window)), default=0)):
                again = Opened(kept, twice)
                there = self.ask_window(begun, now, window, mine, grads, turn)
                there = self.begin_window(there, window, again, anew=False)
                self.read_window(tokens, there, window, ahead, (again,), keep)
                settle((again,), deep, keep)
                grads.append(again.gradients())
            now = self.move_window(now, window, mine, grads)
        if not keep:
            outputs, now = detached(outputs), detached(now)
        return outputs, now

    def read_window(
        self,
        tokens: Tensor,
        now: dict[str, Any],
        window: int,
        ahead: Any,
        opened: tuple[Opened, ...],
        keep: bool,
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Read a window, with what learns from it as it is; its losses go to those `opened`."""
        place = self.window_lengths.index(window)
        if place == 0:
            with attention_kernels(keep and any(map(self.is_deep, self.window_lengths))):
                extra = () if ahead is None else (ahead,)
                outputs, now = self.read_piece(tokens[:, :-1], now, *extra)
            outputs = as_tuple(outputs)
            loss = self.window_loss(outputs[0], tokens[:, 1:], *outputs[1:])
            for one in opened:
                one.losses.append(loss)
            if not opened[-1].kept and not carries(now, opened, self.is_deep(window)):
                outputs = detached(outputs)
                settle(opened, deep=False, keep=False)
            return outputs, now
        inner = self.window_lengths[place - 1]
        pieces = []
        for at in range(0, window, inner):
            part, done = tokens[:, at : at + inner + 1], cut_out(ahead, at, inner)
            piece, now = self.learn_window(part, now, inner, done, opened)
            pieces.append(piece)
        return tuple(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)), now

    def begin_window(
        self, now: dict[str, Any], window: int, opened: Opened | None = None, anew: bool = True
    ) -> dict[str, Any]:
        """Begin a window: what goes back to its start does, what learns becomes a point.

        Where it does not begin `anew` but once more, what learns is not set back.
        """
        done = now["position"]
        for at in self.learners:
            if at.window != window:
                continue
            own = part_of(now, at.instance)
            back = (at.copies and done == 0) or (at.anew and done and done % at.anew == 0)
            if back and (anew or not at.moves):
                own = getattr(self.get_submodule(at.instance), f"restart_{at.memory}")(own)
            if at.moves and opened is not None:
                own = {**own, at.memory: opened.point_of(own[at.memory])}
            now = with_part(now, at.instance, own)
        return now

    def ask_window(
        self,
        begun: dict[str, Any],
        now: dict[str, Any],
        window: int,
        opened: Opened,
        grads: list[list[Any]],
        turn: int,
    ) -> dict[str, Any]:
        """Give the state in which a window begins once more: what moves with it is where it asks.

        What asks for nothing, or no more, is as it was at first.
        """
        there = begun
        for at, value, *slopes in zip(self.movers(window), opened.values, *grads, strict=True):
            own = {**part_of(now, at.instance), at.memory: value}
            if turn < at.asks:
                ask = getattr(self.get_submodule(at.instance), f"ask{turn + 1}_{at.memory}")
                value = ask(*slopes, own, now["position"])
            own = {**part_of(there, at.instance), at.memory: value}
            there = with_part(there, at.instance, own)
        return there

    def move_window(
        self, now: dict[str, Any], window: int, opened: Opened, grads: list[list[Any]]
    ) -> dict[str, Any]:
        """Move what learns at the end of a window by the gradients of its loss."""
        for at, value, *slopes in zip(self.movers(window), opened.values, *grads, strict=True):
            module = self.get_submodule(at.instance)
            own = {**part_of(now, at.instance), at.memory: value}
            learn = getattr(module, f"learn_{at.memory}")
            own = learn(*slopes[: at.asks + 1], own, now["position"])
            now = with_part(now, at.instance, own)
        return now

    def movers(self, window: int) -> list[Learner]:
        """List what moves at the end of such windows."""
        return [at for at in self.learners if at.window == window and at.moves]

    def is_deep(self, window: int) -> bool:
        """Say whether outer gradients pass through the gradients of such windows."""
        return any(at.through for at in self.movers(window))


def cut_out(ahead: Any, at: int, count: int) -> Any:
    """Give some tokens of what has run ahead."""
    if isinstance(ahead, tuple):
        return tuple(cut_out(part, at, count) for part in ahead)
    return None if ahead is None else ahead[:, at : at + count]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Give one result as a tuple too."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def modules_of(state: dict[str, Any]) -> dict[str, Any]:
    """Give the state of the modules alone."""
    return {
        name: value
        for name, value in state.items()
        if not (name == "tokens.recent" or name.endswith(".start"))
    }


def part_of(state: dict[str, Any], path: str) -> dict[str, Any]:
    """Give the state of an instance by its place."""
    for name in path.split("."):
        state = state[name]
    return state


def with_part(state: dict[str, Any], path: str, own: dict[str, Any]) -> dict[str, Any]:
    """Give a state in which an instance has another one."""
    name, _, rest = path.partition(".")
    return {**state, name: with_part(state[name], rest, own) if rest else own}


def carries(now: dict[str, Any], opened: tuple[Opened, ...], deep: bool) -> bool:
    """Say whether what comes after depends on the points of windows that are being read.

    Where nothing does, each piece can be differentiated in all of them as soon as it is read.
    """
    if len(opened) > 1 and (deep or any(len(one.losses) > 1 for one in opened)):
        return True
    points = {id(point) for one in opened for point in one.points}
    known = [value for one in opened for value in tensors_of(one.values)]
    rest = [value for value in tensors_of(now) if id(value) not in points]
    return any(value.requires_grad for value in (*known, *rest))


def tensors_of(value: Any) -> list[Tensor]:
    """List the tensors of a state."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [tensor for part in value for tensor in tensors_of(part)]
    return [value] if isinstance(value, Tensor) else []


def attention_kernels(deep: bool) -> Any:
    """Choose attention's kernels: of those of torch, one alone can be differentiated twice."""
    every = torch.nn.attention.SDPBackend
    quick = [] if deep else [every.FLASH_ATTENTION, every.EFFICIENT_ATTENTION]
    return torch.nn.attention.sdpa_kernel([*quick, every.MATH])


def detached(value: Any) -> Any:
    """Cut a state from the graph that it was made in."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: detached(part) for name, part in value.items()}
    return tuple(map(detached, value)) if isinstance(value, tuple) else value


class AttentionA(nn.Module):
    """Memory A: kernel(softmax), one per heads; always.

    runs   attention: every query attends to the stored pairs
    """

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give the empty cache."""
        key = like.new_zeros(batch, 4, 0, 32)
        value = like.new_zeros(batch, 4, 0, 32)
        return {"key": key, "value": value}

    def forward(
        self, W_k: Tensor, place: Tensor, W_v: Tensor, A: dict[str, Tensor]
    ) -> tuple[Pairs, dict[str, Tensor]]:
        """Add the pairs of a sequence."""
        value = rotate(
            W_k, (place.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, W_k))).unsqueeze(2)
        )
        keys = as_pairs(value, A, True)
        values = as_pairs(W_v, A, True)
        return append_pairs(keys, values, A, None)

    def step(
        self, W_k: Tensor, place: Tensor, W_v: Tensor, A: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add one token's pairs."""
        value = rotate(
            W_k, (place.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, W_k))).unsqueeze(1)
        )
        keys = as_pairs(value, A, False)
        values = as_pairs(W_v, A, False)
        _, A = append_pairs(keys, values, A, None)
        return A

    def read(self, q: Tensor, pairs: Pairs) -> Tensor:
        """Read A(q) at every token, after its pairs are added."""
        return attend(q, pairs, 0.1767766952966369)

    def read_step(self, q: Tensor, A: dict[str, Tensor]) -> Tensor:
        """Read A(q) at one token."""
        return attend_step(q, A, 0.1767766952966369)


class Attention(nn.Module):
    """Block attention: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.W_q = Linear(128, 128, bias=False, **new)
        self.W_k = Linear(128, 128, bias=False, **new)
        self.W_v = Linear(128, 128, bias=False, **new)
        self.W_o = Linear(128, 128, bias=False, **new)
        self.A = AttentionA()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.W_q.reset_parameters()
        self.W_k.reset_parameters()
        self.W_v.reset_parameters()
        self.W_o.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        A = self.A.initial(batch, like)
        return {"A": A, "position": 0}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        position = state["position"]
        value = positions(position, x.shape[1], x)
        A_path, A = self.A(
            self.W_k(x).unflatten(-1, (4, 32)),
            value,
            self.W_v(x).unflatten(-1, (4, 32)),
            state["A"],
        )
        # out = W_o(A(rope(W_q(x))))   (spec.nl:30)
        value_1 = rotate(
            self.W_q(x).unflatten(-1, (4, 32)),
            (value.unsqueeze(2) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(2),
        )
        out = self.W_o(self.A.read(value_1, A_path).flatten(-2))
        state = {"A": A, "position": position + x.shape[1]}
        return out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        position = state["position"]
        value = positions(position, 1, x).squeeze(1)
        A = self.A.step(
            self.W_k(x).unflatten(-1, (4, 32)),
            value,
            self.W_v(x).unflatten(-1, (4, 32)),
            state["A"],
        )
        value_1 = rotate(
            self.W_q(x).unflatten(-1, (4, 32)),
            (value.unsqueeze(1) * torch.exp(-0.5756462732485115 * index(16, x))).unsqueeze(1),
        )
        out = self.W_o(self.A.read_step(value_1, A).flatten(-2))
        state = {"A": A, "position": position + 1}
        return out, state


class CmsF1(nn.Module):
    """Memory F_1: mlp(d -> hidden -> d); every 16 tokens.

    self = self - 0.01 * grad   (rules.nl:7)
    state  F_1.layer1.weight [B, hidden, d]
    state  F_1.layer2.weight [B, d, hidden]
    runs   online: a window of 16 tokens is read, then its loss is differentiated and the memory
        moves, when the target of the last token is there
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.layer1 = Tensors(weight=(256, 128), **new)
        self.layer2 = Tensors(weight=(128, 256), **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.layer1.weight, 128)
        uniform(self.layer2.weight, 256)

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give the state at the start."""
        return {
            "layer1.weight": wide(self.layer1.weight).expand(batch, 256, 128),
            "layer2.weight": wide(self.layer2.weight).expand(batch, 128, 256),
        }

    def read(self, q: Tensor, F_1: dict[str, Tensor]) -> Tensor:
        """Read F_1(q) at all tokens of a window."""
        value = learned_matvecs(
            F_1["layer2.weight"], F.gelu(learned_matvecs(F_1["layer1.weight"], wide(q)))
        )
        result = value.to(q.dtype)
        return result

    def update(self, grad: dict[str, Tensor], F_1: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move by the gradient of a window of 16 tokens."""
        # self = self - 0.01 * grad   (rules.nl:7)
        F_1_layer1_weight = torch.add(F_1["layer1.weight"], grad["layer1.weight"], alpha=-0.01)
        F_1_layer2_weight = torch.add(F_1["layer2.weight"], grad["layer2.weight"], alpha=-0.01)
        return {"layer1.weight": F_1_layer1_weight, "layer2.weight": F_1_layer2_weight}

    def read_step(self, q: Tensor, F_1: dict[str, Tensor]) -> Tensor:
        """Read F_1(q) at one token."""
        result = matvec(F_1["layer2.weight"], F.gelu(matvec(F_1["layer1.weight"], wide(q)))).to(
            q.dtype
        )
        return result


class CmsF2(nn.Module):
    """Memory F_2: mlp(d -> hidden -> d); every 64 tokens.

    self = self - 0.0025 * grad   (rules.nl:7)
    state  F_2.layer1.weight [B, hidden, d]
    state  F_2.layer2.weight [B, d, hidden]
    runs   online: a window of 64 tokens is read, then its loss is differentiated and the memory
        moves, when the target of the last token is there
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.layer1 = Tensors(weight=(256, 128), **new)
        self.layer2 = Tensors(weight=(128, 256), **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.layer1.weight, 128)
        uniform(self.layer2.weight, 256)

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give the state at the start."""
        return {
            "layer1.weight": wide(self.layer1.weight).expand(batch, 256, 128),
            "layer2.weight": wide(self.layer2.weight).expand(batch, 128, 256),
        }

    def read(self, q: Tensor, F_2: dict[str, Tensor]) -> Tensor:
        """Read F_2(q) at all tokens of a window."""
        value = learned_matvecs(
            F_2["layer2.weight"], F.gelu(learned_matvecs(F_2["layer1.weight"], wide(q)))
        )
        result = value.to(q.dtype)
        return result

    def update(self, grad: dict[str, Tensor], F_2: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move by the gradient of a window of 64 tokens."""
        # self = self - 0.0025 * grad   (rules.nl:7)
        F_2_layer1_weight = torch.add(F_2["layer1.weight"], grad["layer1.weight"], alpha=-0.0025)
        F_2_layer2_weight = torch.add(F_2["layer2.weight"], grad["layer2.weight"], alpha=-0.0025)
        return {"layer1.weight": F_2_layer1_weight, "layer2.weight": F_2_layer2_weight}

    def read_step(self, q: Tensor, F_2: dict[str, Tensor]) -> Tensor:
        """Read F_2(q) at one token."""
        result = matvec(F_2["layer2.weight"], F.gelu(matvec(F_2["layer1.weight"], wide(q)))).to(
            q.dtype
        )
        return result


class CmsF3(nn.Module):
    """Memory F_3: mlp(d -> hidden -> d); every 256 tokens.

    self = self - 0.0006 * grad   (rules.nl:7)
    state  F_3.layer1.weight [B, hidden, d]
    state  F_3.layer2.weight [B, d, hidden]
    runs   online: a window of 256 tokens is read, then its loss is differentiated and the memory
        moves, when the target of the last token is there
    """

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.layer1 = Tensors(weight=(256, 128), **new)
        self.layer2 = Tensors(weight=(128, 256), **new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial state anew."""
        uniform(self.layer1.weight, 128)
        uniform(self.layer2.weight, 256)

    def initial(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Give the state at the start."""
        return {
            "layer1.weight": wide(self.layer1.weight).expand(batch, 256, 128),
            "layer2.weight": wide(self.layer2.weight).expand(batch, 128, 256),
        }

    def read(self, q: Tensor, F_3: dict[str, Tensor]) -> Tensor:
        """Read F_3(q) at all tokens of a window."""
        value = learned_matvecs(
            F_3["layer2.weight"], F.gelu(learned_matvecs(F_3["layer1.weight"], wide(q)))
        )
        result = value.to(q.dtype)
        return result

    def update(self, grad: dict[str, Tensor], F_3: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move by the gradient of a window of 256 tokens."""
        # self = self - 0.0006 * grad   (rules.nl:7)
        F_3_layer1_weight = torch.add(F_3["layer1.weight"], grad["layer1.weight"], alpha=-0.0006)
        F_3_layer2_weight = torch.add(F_3["layer2.weight"], grad["layer2.weight"], alpha=-0.0006)
        return {"layer1.weight": F_3_layer1_weight, "layer2.weight": F_3_layer2_weight}

    def read_step(self, q: Tensor, F_3: dict[str, Tensor]) -> Tensor:
        """Read F_3(q) at one token."""
        result = matvec(F_3["layer2.weight"], F.gelu(matvec(F_3["layer1.weight"], wide(q)))).to(
            q.dtype
        )
        return result


class Cms(nn.Module):
    """Block cms: x[d] -> out[d]."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.F_1 = CmsF1(**new)
        self.F_2 = CmsF2(**new)
        self.F_3 = CmsF3(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.F_1.reset_parameters()
        self.F_2.reset_parameters()
        self.F_3.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        F_1 = self.F_1.initial(batch, like)
        F_2 = self.F_2.initial(batch, like)
        F_3 = self.F_3.initial(batch, like)
        return {"F_1": F_1, "F_2": F_2, "F_3": F_3}

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], 0, 128), state
        F_1 = state["F_1"]
        F_2 = state["F_2"]
        F_3 = state["F_3"]
        x_1 = wide(x)
        # y   = x + F_1(rmsnorm(x))   (spec.nl:38)
        y = x_1 + self.F_1.read(rmsnorm(x_1), F_1)
        # z   = y + F_2(rmsnorm(y))   (spec.nl:39)
        z = y + self.F_2.read(rmsnorm(y), F_2)
        # out = z + F_3(rmsnorm(z))   (spec.nl:40)
        out = z + self.F_3.read(rmsnorm(z), F_3)
        state = {"F_1": F_1, "F_2": F_2, "F_3": F_3}
        return out.to(x.dtype), state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        F_1 = state["F_1"]
        F_2 = state["F_2"]
        F_3 = state["F_3"]
        x_1 = wide(x)
        # y   = x + F_1(rmsnorm(x))   (spec.nl:38)
        y = x_1 + self.F_1.read_step(rmsnorm(x_1), F_1)
        # z   = y + F_2(rmsnorm(y))   (spec.nl:39)
        z = y + self.F_2.read_step(rmsnorm(y), F_2)
        # out = z + F_3(rmsnorm(z))   (spec.nl:40)
        out = z + self.F_3.read_step(rmsnorm(z), F_3)
        state = {"F_1": F_1, "F_2": F_2, "F_3": F_3}
        return out.to(x.dtype), state

    def learn_F_1(self, grad: Any, state: dict[str, Any], done: int) -> dict[str, Any]:
        """Move F_1 by the gradient of a window's loss, after so many tokens."""
        F_1 = self.F_1.update(grad, state["F_1"])
        return state | {"F_1": F_1}

    def learn_F_2(self, grad: Any, state: dict[str, Any], done: int) -> dict[str, Any]:
        """Move F_2 by the gradient of a window's loss, after so many tokens."""
        F_2 = self.F_2.update(grad, state["F_2"])
        return state | {"F_2": F_2}

    def learn_F_3(self, grad: Any, state: dict[str, Any], done: int) -> dict[str, Any]:
        """Move F_3 by the gradient of a window's loss, after so many tokens."""
        F_3 = self.F_3.update(grad, state["F_3"])
        return state | {"F_3": F_3}


class ModelRepeat(nn.Module):
    """One pass of `repeat`."""

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.attention = Attention(**new)
        self.cms = Cms(**new)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        self.attention.reset_parameters()
        self.cms.reset_parameters()

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        return {
            "attention": self.attention.initial_state(batch, like),
            "cms": self.cms.initial_state(batch, like),
        }

    def ahead(self, x: Tensor, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run what comes before all that learns, for any number of tokens."""
        # attention(rmsnorm(x))   (spec.nl:47)
        attention_out, attention = self.attention(rmsnorm(x), state["attention"])
        # x = x + attention(rmsnorm(x))   (spec.nl:47)
        x = x + attention_out
        state = state | {"attention": attention}
        return x, state

    def forward(
        self, x: Tensor, state: dict[str, Any] | None = None, ahead: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run a whole sequence: x [B, T, d]; `ahead` is what has run."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        if ahead is None:
            ahead, state = self.ahead(x, state)
        x = ahead
        # cms(x)   (spec.nl:48)
        cms_out, cms = self.cms(x, state["cms"])
        state = {"attention": state["attention"], "cms": cms}
        return cms_out, state

    def step(self, x: Tensor, state: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Run one token: x [B, d]."""
        if state is None:
            state = self.initial_state(x.shape[0], x)
        # attention(rmsnorm(x))   (spec.nl:47)
        attention_out, attention = self.attention.step(rmsnorm(x), state["attention"])
        # x = x + attention(rmsnorm(x))   (spec.nl:47)
        x = x + attention_out
        # cms(x)   (spec.nl:48)
        cms_out, cms = self.cms.step(x, state["cms"])
        state = {"attention": attention, "cms": cms}
        return cms_out, state


class Model(OnlineModel):
    """The model cms_online: tokens [B, T] -> logits [B, T, 256]."""

    # levels that learn from the task, and how many tokens their windows have
    online_levels = (("beat", 16), ("phrase", 64), ("page", 256))
    learners = (
        Learner("repeat.0.cms", "F_1", 16),
        Learner("repeat.0.cms", "F_2", 64),
        Learner("repeat.0.cms", "F_3", 256),
        Learner("repeat.1.cms", "F_1", 16),
        Learner("repeat.1.cms", "F_2", 64),
        Learner("repeat.1.cms", "F_3", 256),
        Learner("repeat.2.cms", "F_1", 16),
        Learner("repeat.2.cms", "F_2", 64),
        Learner("repeat.2.cms", "F_3", 256),
        Learner("repeat.3.cms", "F_1", 16),
        Learner("repeat.3.cms", "F_2", 64),
        Learner("repeat.3.cms", "F_3", 256),
    )

    def __init__(self, device=None, dtype=None):
        super().__init__()
        new = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(256, 128, **new)
        self.unembed = Linear(128, 256, bias=False, **new)
        self.repeat = nn.ModuleList(ModelRepeat(**new) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        nn.init.normal_(self.embed.weight, std=0.02)
        self.unembed.reset_parameters()
        for layer in self.repeat:
            layer.reset_parameters()

    def first_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state of all modules before the first token."""
        return {
            "position": 0,
            "repeat": {
                str(i): layer.initial_state(batch, like) for i, layer in enumerate(self.repeat)
            },
        }

    def read_ahead(self, tokens: Tensor, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run what comes before all that learns, for any number of tokens."""
        # x[d] = embed(tokens)   (spec.nl:45)
        x = self.embed(tokens)
        repeat_ahead, repeat_0 = self.repeat[0].ahead(x, state["repeat"]["0"])
        state = state | {"repeat": state["repeat"] | {"0": repeat_0}}
        return (x, repeat_ahead), state

    def read_piece(
        self, tokens: Tensor, state: dict[str, Any], ahead: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Read tokens, with what learns as it is: tokens [B, T]; `ahead` is what has run."""
        if ahead is None:
            ahead, state = self.read_ahead(tokens, state)
        x, repeat_ahead = ahead
        position = state["position"]
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer(
                x, state["repeat"][str(i)], repeat_ahead if i == 0 else None
            )
        # logits = unembed(rmsnorm(x))   (spec.nl:50)
        logits = self.unembed(rmsnorm(x))
        state = {"position": position + tokens.shape[1], "repeat": repeat_states}
        return logits, state

    def read_step(self, tokens: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Read one token, with what learns as it is: tokens [B]."""
        position = state["position"]
        # x[d] = embed(tokens)   (spec.nl:45)
        x = self.embed(tokens)
        repeat_states = {}
        for i, layer in enumerate(self.repeat):
            x, repeat_states[str(i)] = layer.step(x, state["repeat"][str(i)])
        # logits = unembed(rmsnorm(x))   (spec.nl:50)
        logits = self.unembed(rmsnorm(x))
        state = {"position": position + 1, "repeat": repeat_states}
        return logits, state

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec: its mean over batch and tokens."""
        return cross_entropy(logits, targets).mean()

    def window_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The objective of the spec, summed over a window's tokens."""
        return cross_entropy(logits, targets).sum()
