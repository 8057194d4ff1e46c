"""Optimizers of gated_deltanet.

`optimizer(module)` is one optimizer for all levels of steps. Call `step` at every
training step and `zero_grad` after it; each level acts at its own period, with the
sum of the gradients since it last did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# yields values at which it wants gradients, and is sent these
Points = Generator[list[Tensor], list[Tensor], None]
INTERPRETED = os.environ.get("TRITON_INTERPRET", "") not in ("", "0")
# the types that kernels read and write; they compute in float32
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK = 2048  # entries of a program


class Bucket:
    """Parameters that move together, as lists with one tensor for each.

    `w` are their values and `grad` their gradients, in float32 or better; `axes` says how many axes
    are their own (the others are copies), `group` is their param group, `kept` are their states and
    `inputs` what the maps they belong to were given.
    """

    def __init__(self, group: dict[str, Any], axes: int) -> None:
        self.group, self.axes = group, axes
        self.w: list[Tensor] = []
        self.grad: list[Tensor] = []
        self.kept: list[dict[str, Any]] = []
        self.inputs: list[list[Tensor]] = []

    def given(self, *names: str) -> list[Any]:
        """Arguments of the rule."""
        return [self.group[name] for name in names]

    def lists(self, *names: str) -> list[list[Any]]:
        """States, a list each: of tensors, or of tensors by part."""
        return [[kept[name] for kept in self.kept] for name in names]

    def counts(self, *names: str) -> list[Any]:
        """States that are plain numbers, the same for all parameters here."""
        return [self.kept[0][name] for name in names]

    def keep(self, numbers: dict[str, Any]) -> None:
        """Set states that are plain numbers."""
        for kept in self.kept:
            kept.update(numbers)

    def keys(self) -> list[Tensor]:
        """The input of each map at all tokens, [tokens, in]; 0 where there is none."""
        none = [w.new_zeros(1, *w.shape[-1:]) for w in self.w]
        given = zip(self.w, self.inputs, none, strict=True)
        return [torch.cat(x).to(w.dtype) if x else zero for w, x, zero in given]

    def count(self) -> int:
        """Count this call."""
        calls: int = self.kept[0]["grad.calls"] + 1
        self.keep({"grad.calls": calls})
        return calls


class Rule(torch.optim.Optimizer):
    """A rule as an optimizer.

    The arguments of the rule are options of a param group, so groups and schedulers work as they do
    with torch's own. `state[p]` holds the states by name. A tensor of more than two axes is a batch
    of matrices; where it is not, the option `lead` says how many of its axes are copies.

    A class says: the `states` it keeps and which of them are plain `numbers`; arguments that are
    `whole` numbers; whether parameters move only with others of their shape (`shaped`), and with
    how many own axes it cannot move them (`refused`) or moves them as a matrix of one row (`rows`);
    whether it takes gradients at other values (`asks`), and whether others than the parameters'
    values are read outside training (`averaged`); whether it uses the inputs of maps (`keyed`).
    """

    states: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    refused: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    shaped = False
    asks = False
    averaged = False
    keyed = False

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.aside: dict[Tensor, Tensor] = {}
        self.inputs: dict[Tensor, list[Tensor]] = {}
        if isinstance(params, nn.Module):
            self.watch(params)
            params = params.parameters()
        elif self.keyed:
            name = type(self).__name__
            raise ValueError(f"{name} uses the inputs of maps: give it the module, not a list")
        super().__init__(params, {**defaults, "lead": None})

    def watch(self, module: nn.Module) -> None:
        """Note what maps are given whenever a module runs in training."""
        watching = Watching(self.inputs)
        module.register_forward_pre_hook(lambda *_: watching.__enter__() and None)
        module.register_forward_hook(
            lambda *_: watching.__exit__(None, None, None), always_call=True
        )

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {}

    @classmethod
    def read(cls, p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Give a parameter's value and gradient as the equations take them."""
        return wide(p.detach()), wide(grad)

    @classmethod
    def advance(cls, at: Bucket) -> Points | None:
        """Run the equations once, in the way that fits."""
        return cls.move(at)

    @classmethod
    def move(cls, at: Bucket) -> Points | None:
        """Run the equations once; a rule that asks gives a generator."""
        moves = (cls.scalars, cls.vectors, cls.matrices)
        return moves[at.axes](at)

    @staticmethod
    def matrices(at: Bucket) -> Points | None:
        """Move matrices."""
        raise NotImplementedError

    vectors = scalars = matrices

    @staticmethod
    def evaluated(at: Bucket) -> list[Tensor]:
        """Give the values that are read outside training."""
        return at.w

    def rule(self, group: dict[str, Any]) -> type[Rule]:
        """Return the rule of a param group."""
        return type(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, after a look at whether the rule can move them."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        rule = self.rule(group)
        name = rule.__name__
        for word in rule.whole:
            if group[word] < 1 or group[word] != int(group[word]):
                raise ValueError(f"{name}: {word} is a whole number from 1 on, not {group[word]}")
        for p in group["params"]:
            if not p.is_floating_point():
                raise ValueError(f"{name} moves real numbers, not a tensor of {p.dtype}")
            axes = own_axes(p, group)
            if axes in rule.refused:
                kind = ("single numbers", "vectors", "matrices")[axes]
                raise ValueError(f"{name} does not move {kind}, here one of shape {[*p.shape]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one training step; a closure computes the loss and its gradients anew."""
        if self.aside:
            raise RuntimeError("other values are in place since eval(): call train() before step()")
        asks = [group for group in self.param_groups if self.rule(group).asks]
        if asks and closure is None:
            raise ValueError(
                f"{self.rule(asks[0]).__name__} takes gradients at other values: give step a "
                "closure that clears the gradients, computes the loss and calls backward"
            )
        loss = None
        if closure is not None:
            self.inputs.clear()
            with torch.enable_grad():
                loss = closure()
        if closure is not None and asks:
            found = [b for group in asks for b in self.buckets(group, self.due(group))]
            self.together(found, closure)
        for group in self.param_groups:
            if not self.rule(group).asks:
                for params, at in self.buckets(group, self.due(group)):
                    self.run(self.rule(group), at)
                    put(params, at.w)
        self.inputs.clear()
        return loss

    def run(self, rule: type[Rule], at: Bucket) -> None:
        """Run a rule's equations once; on a CPU in pieces that stay in its cache."""
        try:
            if rule.shaped or at.w[0].device.type != "cpu":
                rule.advance(at)
                return
            for piece in pieces(at):
                rule.advance(piece)
            at.keep({name: piece.kept[0][name] for name in rule.numbers})
        except (ArithmeticError, ValueError) as error:
            given = {k: v for k, v in at.group.items() if isinstance(v, int | float)}
            words = ", ".join(f"{name} = {value}" for name, value in given.items())
            message = f"{rule.__name__} has no value for its numbers: {error} ({words})"
            raise ArithmeticError(message) from None

    def due(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters that move at this call, with their gradients."""
        return [(p, dense(p.grad)) for p in group["params"] if p.grad is not None]

    def buckets(
        self, group: dict[str, Any], due: Iterable[tuple[Tensor, Tensor]]
    ) -> list[tuple[list[Tensor], Bucket]]:
        """Put parameters together that can move together."""
        rule = self.rule(group)
        found: dict[Any, tuple[list[Tensor], Bucket]] = {}
        for p, grad in due:
            kept = self.state[p]
            axes = own_axes(p, group)
            w, grad = rule.read(p, grad)
            if axes in rule.rows:
                # a vector is a matrix of one row, a number one of one entry
                w, grad = (x.unsqueeze(-2) if axes else x[..., None, None] for x in (w, grad))
                axes = 2
            if any(name not in kept for name in rule.states):
                kept.update(rule.start(wide(w), axes))
            shape = (axes, *w.shape) if rule.shaped else ()
            numbers = tuple(kept[name] for name in rule.numbers)
            key = (p.device, w.dtype, grad.dtype, w.is_contiguous(), shape, numbers)
            params, at = found.setdefault(key, ([], Bucket(group, axes)))
            params.append(p)
            at.w.append(w)
            at.grad.append(grad)
            at.kept.append(kept)
            at.inputs.append([*kept.pop("level.inputs", []), *self.inputs.get(p, [])])
        return list(found.values())

    def together(
        self, found: list[tuple[list[Tensor], Bucket]], closure: Callable[[], Any]
    ) -> None:
        """Run rules that take gradients at other values: all parameters go there at once."""
        runs: list[tuple[list[Tensor], Bucket, Points]] = []
        for params, at in found:
            points = self.rule(at.group).move(at)
            assert points is not None
            runs.append((params, at, points))
        answers: list[list[Tensor] | None] = [None] * len(runs)
        while runs:
            waiting, moved = [], []
            for (params, at, points), answer in zip(runs, answers, strict=True):
                try:
                    where = next(points) if answer is None else points.send(answer)
                except StopIteration:
                    put(params, at.w)
                    continue
                waiting.append((params, at, points))
                moved.append((params, where))
            runs = waiting
            answers = [*self.gradients(moved, closure)] if runs else []

    def gradients(
        self, moved: list[tuple[list[Tensor], list[Tensor]]], closure: Callable[[], Any]
    ) -> Iterator[list[Tensor]]:
        """Compute the gradients with parameters at other values, and put all back."""
        every = [p for group in self.param_groups for p in group["params"]]
        before = [p.grad for p in every]
        values = [[p.detach().clone() for p in params] for params, _ in moved]
        inputs = dict(self.inputs)
        for p in every:
            p.grad = None
        for params, where in moved:
            put(params, where)
        with torch.enable_grad():
            closure()
        for (params, where), value in zip(moved, values, strict=True):
            yield [
                torch.zeros_like(x) if p.grad is None else wide(dense(p.grad)).view_as(x)
                for p, x in zip(params, where, strict=True)
            ]
            put(params, value)
        for p, grad in zip(every, before, strict=True):
            p.grad = grad
        # what maps were given elsewhere is not of this step
        self.inputs.clear()
        self.inputs.update(inputs)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the values in place that are read outside training; `train` takes them back."""
        if self.aside:
            return
        for group in self.param_groups:
            rule = self.rule(group)
            if not rule.averaged:
                continue
            begun = [p for p in group["params"] if all(n in self.state[p] for n in rule.states)]
            for params, at in self.buckets(group, [(p, p.detach()) for p in begun]):
                values = [value.clone() for value in rule.evaluated(at)]
                self.aside.update((p, p.detach().clone()) for p in params)
                put(params, values)

    @torch.no_grad()
    def train(self) -> None:
        """Put the values in place that training goes on with."""
        for p, value in self.aside.items():
            p.copy_(value)
        self.aside = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, every number in the type it had."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, p in zip(saved, own, strict=True):
            if key in state_dict["state"]:
                kept = state_dict["state"][key].items()
                self.state[p] = {name: placed(value, p) for name, value in kept}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "aside": self.aside, "inputs": self.inputs}


class Levels(Rule):
    """All levels of steps as one optimizer; a level's parameters are one or more param groups.

    A level of period N sums the gradients of N calls and moves at the N-th.
    """

    def __init__(
        self, module: nn.Module, groups: list[dict[str, Any]], rules: dict[str, type[Rule]]
    ) -> None:
        self.rules = rules
        super().__init__(groups, {})
        if any(rule.keyed for rule in rules.values()):
            self.watch(module)

    def rule(self, group: dict[str, Any]) -> type[Rule]:
        """Return the rule of a param group."""
        return self.rules[group["level"]]

    def due(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """Return the parameters that move at this call, with the sum of their gradients."""
        group["calls"] += 1
        now = super().due(group)
        if group["period"] == 1:
            return now
        for p, grad in now:
            total = self.state[p].get("level.sum")
            self.state[p]["level.sum"] = wide(grad).clone() if total is None else total.add_(grad)
            if self.rule(group).keyed and p in self.inputs:
                self.state[p].setdefault("level.inputs", []).extend(self.inputs.pop(p))
        if group["calls"] % group["period"]:
            return []
        states = [(p, self.state[p]) for p in group["params"]]
        return [(p, kept.pop("level.sum")) for p, kept in states if "level.sum" in kept]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rules": self.rules}


def grouped(
    module: nn.Module,
    levels: dict[str, str],
    copies: dict[str, int],
    rules: list[tuple[str, int, dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Make the param groups of a module's levels; a parameter without a level stays as it is.

    levels: the level of each parameter; copies: how many axes in front are copies, where these are
    not all but the last two; rules: each level's period and the arguments of its rule.
    """
    groups = []
    for level, period, arguments in rules:
        own = [(n, p) for n, p in module.named_parameters() if levels[n] == level]
        own = [(n, p) for n, p in own if p.requires_grad]
        for lead in dict.fromkeys(copies.get(name) for name, _ in own):
            params = [p for name, p in own if copies.get(name) == lead]
            group = {"params": params, "level": level, "period": period, "calls": 0, "lead": lead}
            groups.append({**group, **arguments})
    return groups


class Watching(TorchFunctionMode):
    """Notes the inputs of maps by their matrix, while gradients are recorded."""

    def __init__(self, inputs: dict[Tensor, list[Tensor]]) -> None:
        super().__init__()
        self.inputs = inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and isinstance(args[1], nn.Parameter) and torch.is_grad_enabled():
            x = args[0].detach()
            self.inputs.setdefault(args[1], []).append(x.reshape(-1, x.shape[-1]))
        return func(*args, **(kwargs or {}))


def own_axes(p: Tensor, group: dict[str, Any]) -> int:
    """Count the axes of a parameter that are no copies: 2, 1 or 0."""
    return min(p.ndim - (group["lead"] or 0), 2)


def pieces(at: Bucket, size: int = 2**16) -> Iterator[Bucket]:
    """Cut the lists of a rule that works entry by entry: tensors in parts, small ones together."""
    piece, room = Bucket(at.group, at.axes), size
    for w, grad, kept in zip(at.w, at.grad, at.kept, strict=True):
        states = {name: x for name, x in kept.items() if isinstance(x, Tensor)}
        alike = all(x.is_contiguous() and x.shape == w.shape for x in (w, grad, *states.values()))
        cut = alike and w.numel() > size
        for start in range(0, w.numel() if cut else 1, size):
            if room <= 0:
                yield piece
                piece, room = Bucket(at.group, at.axes), size
            part = slice(start, start + size)
            piece.w.append(w.view(-1)[part] if cut else w)
            piece.grad.append(grad.view(-1)[part] if cut else grad)
            own = {name: x.view(-1)[part] if cut else x for name, x in states.items()}
            piece.kept.append(kept | own)
            room -= piece.w[-1].numel()
    yield piece


def dense(grad: Tensor) -> Tensor:
    """Give a gradient with all its entries."""
    return grad.to_dense() if grad.is_sparse else grad


def put(params: list[Tensor], values: list[Tensor]) -> None:
    """Write values into parameters, in their own type and shape."""
    for p, value in zip(params, values, strict=True):
        if p.data_ptr() != value.data_ptr() or p.dtype != value.dtype:
            p.copy_(value.view_as(p))


def placed(value: Any, p: Tensor) -> Any:
    """Give a copy of a state where its parameter is."""
    if isinstance(value, dict):
        return {name: placed(part, p) for name, part in value.items()}
    if isinstance(value, list):
        return [placed(item, p) for item in value]
    return value.to(p.device, copy=True) if isinstance(value, Tensor) else value


def wide(x: Tensor) -> Tensor:
    """Give x in float32 or better: the precision of states and decays."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Fused(Rule):
    """A rule whose equations also run as kernels, on a GPU.

    `narrow`: they read and write parameters in their own type, without a copy in float32.
    """

    narrow = False

    @classmethod
    def read(cls, p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Give a parameter's value and gradient as the equations take them."""
        if cls.narrow and fits(p) and grad.dtype in TYPES:
            return p.detach(), grad.contiguous()
        return wide(p.detach()), wide(grad)

    @classmethod
    def advance(cls, at: Bucket) -> Points | None:
        """Run the equations once: as kernels where these take all tensors, else as PyTorch."""
        grads = at.grad = [grad.contiguous() for grad in at.grad]
        states = [x for kept in at.kept for x in kept.values() if isinstance(x, Tensor)]
        alike = {x.dtype for x in states} <= {torch.float32}
        if alike and all(fits(x) for x in (*at.w, *grads, *states)):
            moves = (cls.launch_scalars, cls.launch_vectors, cls.launch_matrices)
            return moves[at.axes](at)
        at.w, at.grad = [wide(x) for x in at.w], [wide(x) for x in grads]
        return cls.move(at)

    @staticmethod
    def launch_matrices(at: Bucket) -> None:
        """Move matrices by kernels."""
        raise NotImplementedError

    launch_vectors = launch_scalars = launch_matrices


def fits(x: Tensor) -> bool:
    """Say whether kernels take a tensor: a plain one, not one that lies on several machines."""
    plain = type(x) in (Tensor, nn.Parameter) and (x.is_cuda or INTERPRETED)
    return plain and x.dtype in TYPES and x.is_contiguous()


def launch(kernel: Any, lists: Sequence[Sequence[Tensor]], numbers: Sequence[float]) -> None:
    """Run a kernel over lists of tensors that have the same sizes; those that are even together.

    Even: addresses and sizes are multiples of 16, so that a thread moves 16 bytes at a time.
    """
    every = [[x.contiguous() for x in xs] for xs in zip(*lists, strict=True)]
    even = [all(x.data_ptr() % 16 == 0 for x in xs) and xs[0].numel() % 16 == 0 for xs in every]
    device = lists[0][0].device
    kinds = [TYPES[xs[0].dtype] for xs in lists]
    for EVEN in (True, False):
        rows = [xs for xs, fine in zip(every, even, strict=True) if fine == EVEN]
        sizes = tuple(xs[0].numel() for xs in rows)
        if not sum(sizes):
            continue
        addresses = [[x.data_ptr() for x in xs] for xs in zip(*rows, strict=True)]
        table = torch.tensor([sizes, *addresses])
        if device.type == "cuda":
            table = table.pin_memory().to(device, non_blocking=True)
        chunks = chunks_of(sizes, device)
        with torch.cuda.device_of(lists[0][0]):
            kernel[(len(chunks),)](
                table, chunks, len(sizes), *map(float, numbers), *kinds, EVEN, BLOCK
            )


@lru_cache(maxsize=64)
def chunks_of(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Cut tensors into chunks of BLOCK entries: the tensor of each and its number there."""
    counts = torch.tensor([-(-size // BLOCK) for size in sizes])
    tensors = torch.arange(len(sizes)).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts)[tensors]
    return torch.stack((tensors, torch.arange(len(tensors)) - first), 1).to(device)


@triton.jit
def place(table, chunks, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    """A program's tensor, its entries there, and which of them there are."""
    tensor = tl.load(chunks + 2 * tl.program_id(0))
    at = tl.load(chunks + 2 * tl.program_id(0) + 1) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(table + tensor)
    if EVEN:
        size = tl.multiple_of(size, 16)
    return tensor, at, at < size


@triton.jit
def entries(table, count, row: tl.constexpr, tensor, at, kind: tl.constexpr, EVEN: tl.constexpr):
    """Where the entries of one tensor of a list are."""
    start = tl.load(table + row * count + tensor).to(tl.pointer_type(kind))
    if EVEN:
        start = tl.multiple_of(start, 16)
    return start + at


@triton.jit
def adamw_kernel(
    table,
    chunks,
    count,
    beta1,
    c1,
    beta2,
    c2,
    c3,
    lr,
    c4,
    c5,
    eps,
    w_type: tl.constexpr,
    grad_type: tl.constexpr,
    m_type: tl.constexpr,
    v_type: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """m, v, w of BLOCK entries of a tensor.

    c1 = 1 - beta1; c2 = 1 - beta2; c3 = 1 - lr * weight_decay; c4 = 1 - beta1**n; c5 = 1 - beta2**n
    """
    tensor, at, live = place(table, chunks, EVEN, BLOCK)
    w_at = entries(table, count, 1, tensor, at, w_type, EVEN)
    grad_at = entries(table, count, 2, tensor, at, grad_type, EVEN)
    m_at = entries(table, count, 3, tensor, at, m_type, EVEN)
    v_at = entries(table, count, 4, tensor, at, v_type, EVEN)
    w = tl.load(w_at, mask=live).to(tl.float32)
    grad = tl.load(grad_at, mask=live).to(tl.float32)
    m = tl.load(m_at, mask=live).to(tl.float32)
    v = tl.load(v_at, mask=live).to(tl.float32)
    # m = beta1 * m + (1 - beta1) * grad   (rules.nl:55)
    m = beta1 * m + c1 * grad
    # v = beta2 * v + (1 - beta2) * grad^2   (rules.nl:56)
    v = beta2 * v + c2 * (grad * grad)
    # self = (1 - lr * weight_decay) * self   (rules.nl:57)
    w = c3 * w
    # self = self - lr * (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)   (rules.nl:58)
    w = w - lr * (m / c4) / (tl.sqrt(v / c5) + eps)
    tl.store(m_at, m, mask=live)
    tl.store(v_at, v, mask=live)
    tl.store(w_at, w, mask=live)


class Adamw(Fused):
    """Rule adamw (rules.nl:50).

    Adam with decoupled weight decay (arXiv:1711.05101)
    """

    states = ("m", "v", "n")
    numbers = ("n",)
    narrow = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-08,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"m": torch.zeros_like(w), "v": torch.zeros_like(w), "n": 0}

    @staticmethod
    def move(at: Bucket) -> None:
        """Move parameters of any shape."""
        lr, beta1, beta2, eps, weight_decay = at.given(
            "lr", "beta1", "beta2", "eps", "weight_decay"
        )
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        (n,) = at.counts("n")
        # n = n + 1   (rules.nl:54)
        n = n + 1
        # m = beta1 * m + (1 - beta1) * grad   (rules.nl:55)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grad, alpha=1 - beta1)
        # v = beta2 * v + (1 - beta2) * grad^2   (rules.nl:56)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grad, grad, value=1 - beta2)
        # self = (1 - lr * weight_decay) * self   (rules.nl:57)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)   (rules.nl:58)
        value = torch._foreach_div(v, 1 - beta2**n)
        torch._foreach_sqrt_(value)
        torch._foreach_add_(value, eps)
        torch._foreach_addcdiv_(w, m, value, value=-lr / (1 - beta1**n))
        at.keep({"n": n})

    @staticmethod
    def launch_matrices(at: Bucket) -> None:
        """Move matrices by kernels."""
        lr, beta1, beta2, eps, weight_decay = at.given(
            "lr", "beta1", "beta2", "eps", "weight_decay"
        )
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        (n,) = at.counts("n")
        # n = n + 1   (rules.nl:54)
        n = n + 1
        # in one launch: m, v, w
        scalars = [
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            1 - lr * weight_decay,
            lr,
            1 - beta1**n,
            1 - beta2**n,
            eps,
        ]
        launch(adamw_kernel, [w, grad, m, v], scalars)
        at.keep({"n": n})

    launch_vectors = launch_matrices

    launch_scalars = launch_matrices


# the level that moves each parameter, by module
LEVELS: dict[str, dict[str, str]] = {
    "Mixer": {
        "W_q.weight": "slow",
        "W_k.weight": "slow",
        "W_v.weight": "slow",
        "W_g.weight": "slow",
        "W_beta.weight": "slow",
        "W_dt.weight": "slow",
        "W_o.weight": "slow",
        "conv_q.weight": "slow",
        "conv_k.weight": "slow",
        "conv_v.weight": "slow",
        "A": "slow",
        "b": "slow",
        "gain": "slow",
    },
    "Ffn": {
        "F.gate": "slow",
        "F.up": "slow",
        "F.down": "slow",
    },
    "Model": {
        "embed.weight": "slow",
        "unembed.weight": "slow",
        "repeat.0.mixer.W_q.weight": "slow",
        "repeat.0.mixer.W_k.weight": "slow",
        "repeat.0.mixer.W_v.weight": "slow",
        "repeat.0.mixer.W_g.weight": "slow",
        "repeat.0.mixer.W_beta.weight": "slow",
        "repeat.0.mixer.W_dt.weight": "slow",
        "repeat.0.mixer.W_o.weight": "slow",
        "repeat.0.mixer.conv_q.weight": "slow",
        "repeat.0.mixer.conv_k.weight": "slow",
        "repeat.0.mixer.conv_v.weight": "slow",
        "repeat.0.mixer.A": "slow",
        "repeat.0.mixer.b": "slow",
        "repeat.0.mixer.gain": "slow",
        "repeat.0.ffn.F.gate": "slow",
        "repeat.0.ffn.F.up": "slow",
        "repeat.0.ffn.F.down": "slow",
        "repeat.1.mixer.W_q.weight": "slow",
        "repeat.1.mixer.W_k.weight": "slow",
        "repeat.1.mixer.W_v.weight": "slow",
        "repeat.1.mixer.W_g.weight": "slow",
        "repeat.1.mixer.W_beta.weight": "slow",
        "repeat.1.mixer.W_dt.weight": "slow",
        "repeat.1.mixer.W_o.weight": "slow",
        "repeat.1.mixer.conv_q.weight": "slow",
        "repeat.1.mixer.conv_k.weight": "slow",
        "repeat.1.mixer.conv_v.weight": "slow",
        "repeat.1.mixer.A": "slow",
        "repeat.1.mixer.b": "slow",
        "repeat.1.mixer.gain": "slow",
        "repeat.1.ffn.F.gate": "slow",
        "repeat.1.ffn.F.up": "slow",
        "repeat.1.ffn.F.down": "slow",
        "repeat.2.mixer.W_q.weight": "slow",
        "repeat.2.mixer.W_k.weight": "slow",
        "repeat.2.mixer.W_v.weight": "slow",
        "repeat.2.mixer.W_g.weight": "slow",
        "repeat.2.mixer.W_beta.weight": "slow",
        "repeat.2.mixer.W_dt.weight": "slow",
        "repeat.2.mixer.W_o.weight": "slow",
        "repeat.2.mixer.conv_q.weight": "slow",
        "repeat.2.mixer.conv_k.weight": "slow",
        "repeat.2.mixer.conv_v.weight": "slow",
        "repeat.2.mixer.A": "slow",
        "repeat.2.mixer.b": "slow",
        "repeat.2.mixer.gain": "slow",
        "repeat.2.ffn.F.gate": "slow",
        "repeat.2.ffn.F.up": "slow",
        "repeat.2.ffn.F.down": "slow",
        "repeat.3.mixer.W_q.weight": "slow",
        "repeat.3.mixer.W_k.weight": "slow",
        "repeat.3.mixer.W_v.weight": "slow",
        "repeat.3.mixer.W_g.weight": "slow",
        "repeat.3.mixer.W_beta.weight": "slow",
        "repeat.3.mixer.W_dt.weight": "slow",
        "repeat.3.mixer.W_o.weight": "slow",
        "repeat.3.mixer.conv_q.weight": "slow",
        "repeat.3.mixer.conv_k.weight": "slow",
        "repeat.3.mixer.conv_v.weight": "slow",
        "repeat.3.mixer.A": "slow",
        "repeat.3.mixer.b": "slow",
        "repeat.3.mixer.gain": "slow",
        "repeat.3.ffn.F.gate": "slow",
        "repeat.3.ffn.F.up": "slow",
        "repeat.3.ffn.F.down": "slow",
    },
}
# how many axes in front are copies, where these are not all but the last two
COPIES: dict[str, dict[str, int]] = {}


def optimizer(module: nn.Module) -> Levels:
    """Make the optimizer of a model or a block, for all its levels of steps."""
    name = type(module).__name__
    levels: list[tuple[str, int, dict[str, Any]]] = [
        ("slow", 1, {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-08, "weight_decay": 0.1}),
    ]
    rules: dict[str, type[Rule]] = {"slow": Adamw}
    groups = grouped(module, LEVELS[name], COPIES.get(name, {}), levels)
    return Levels(module, groups, rules)
