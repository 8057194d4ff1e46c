"""Optimizers of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# yields values at which it wants gradients, and is sent these
Points = Generator[list[Tensor], list[Tensor], None]


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


def drawn(x: Tensor, fan: int) -> Tensor:
    """Draw a map's tensor: uniform in +-1/sqrt(fan)."""
    return x.uniform_(-(fan**-0.5), fan**-0.5)


def slopes(objective: Callable[..., Tensor], points: list[Any], *others: list[Any]) -> list[Any]:
    """The gradient of an objective, a number for each copy, at points: tensors, or such by part."""
    found: list[Any] = []
    for point, *rest in zip(points, *others, strict=True):
        parts = point if isinstance(point, dict) else {"": point}
        at = {name: x.detach().requires_grad_() for name, x in parts.items()}
        with torch.enable_grad():
            total = objective(at if isinstance(point, dict) else at[""], *rest).sum()
        grads: Any = [None] * len(at)
        if total.requires_grad:
            grads = torch.autograd.grad(total, [*at.values()], allow_unused=True)
        pairs = zip(at.items(), grads, strict=True)
        slope = {n: torch.zeros_like(x) if grad is None else grad for (n, x), grad in pairs}
        found.append(slope if isinstance(point, dict) else slope[""])
    return found


def parts(*states: list[dict[str, Tensor]]) -> Iterator[tuple[Any, ...]]:
    """Go over the parts of states: the name of each, and the lists of its tensors."""
    for name in states[0][0]:
        yield (name, *([x[name] for x in state] for state in states))


def times(weight: Tensor, x: Tensor, more: int) -> Tensor:
    """W x: weight [*copies, m, k], x [*copies, *more, k]; `more` counts further axes."""
    if not more:
        return (weight @ x[..., None])[..., 0]
    return x @ weight[(..., *[None] * (more - 1), slice(None), slice(None))].mT


def orthogonal(
    xs: list[Tensor], steps: int, coefficients: tuple[tuple[float, float, float], ...], eps: float
) -> list[Tensor]:
    """Orthogonalise matrices of one shape: X <- a X + (b A + c A^2) X, A = X X^T, from X / ||X||.

    Small ones all at once.
    """
    shape, tall = xs[0].shape, xs[0].shape[-2] > xs[0].shape[-1]
    if len(xs) > 1 and xs[0].numel() > (2**16 if xs[0].device.type == "cpu" else 2**20):
        return [x for one in xs for x in orthogonal([one], steps, coefficients, eps)]
    x = torch.stack(xs).flatten(0, -3)
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)
    for i in range(steps):
        a, b, c = coefficients[i % len(coefficients)]
        gram = x @ x.mT
        # one pass each: b A + c A A, a X + (...) X
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if tall else x
    return list(x.reshape(len(xs), *shape).unbind())


def unit(x: Tensor, dim: int | tuple[int, ...] = -1, eps: float = 1e-12) -> Tensor:
    """x / max(||x||, eps)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return Unit.apply(x, dim, eps)
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


class Unit(torch.autograd.Function):
    """As `unit`; its gradient has nothing along y, where x is longer than eps."""

    @staticmethod
    def forward(ctx, x, dim, eps):
        ctx.save_for_backward(x)
        ctx.dim, ctx.eps = dim, eps
        return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        length = torch.linalg.vector_norm(x, dim=ctx.dim, keepdim=True)
        scale = 1 / length.clamp_min(ctx.eps)
        y = x * scale
        along = (dy * y).sum(ctx.dim, keepdim=True) * (length > ctx.eps)
        # as x lies in memory, in which what made x goes on
        return (y * -along + dy) * scale, None, None


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """[..., m, k], [..., k] -> [..., m], as a row times a matrix: the fast side of a product."""
    return (x.unsqueeze(-2) @ matrix.mT).squeeze(-2)


class Sgd(Rule):
    """Rule sgd (spec.nl:6).

    W <- W - lr (grad + weight_decay W)
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @staticmethod
    def move(at: Bucket) -> None:
        """Move parameters of any shape."""
        lr, weight_decay = at.given("lr", "weight_decay")
        w, grad = at.w, at.grad
        # self = self - lr * (grad + weight_decay * self)   (spec.nl:7)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        torch._foreach_add_(w, grad, alpha=-lr)


class Momentum(Rule):
    """Rule momentum (spec.nl:11).

    Polyak's heavy ball; Nested Learning (arXiv:2512.24695), eq. 33
    """

    states = ("S",)

    def __init__(self, params: Any, lr: float, beta: float = 0.9) -> None:
        defaults = {"lr": lr, "beta": beta}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"S": torch.zeros_like(w)}

    @staticmethod
    def move(at: Bucket) -> None:
        """Move parameters of any shape."""
        lr, beta = at.given("lr", "beta")
        w, grad = at.w, at.grad
        (S,) = at.lists("S")
        # S = beta * S - lr * grad   (spec.nl:13)
        torch._foreach_mul_(S, beta)
        torch._foreach_add_(S, grad, alpha=-lr)
        # self = self + S   (spec.nl:14)
        torch._foreach_add_(w, S)


class Nesterov(Rule):
    """Rule nesterov (spec.nl:18).

    Nesterov's momentum as Sutskever et al. (2013) write it, and torch
    """

    states = ("m",)

    def __init__(self, params: Any, lr: float, beta: float = 0.9) -> None:
        defaults = {"lr": lr, "beta": beta}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"m": torch.zeros_like(w)}

    @staticmethod
    def move(at: Bucket) -> None:
        """Move parameters of any shape."""
        lr, beta = at.given("lr", "beta")
        w, grad = at.w, at.grad
        (m,) = at.lists("m")
        # m = beta * m + grad   (spec.nl:20)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # self = self - lr * (grad + beta * m)   (spec.nl:21)
        torch._foreach_add_(w, grad, alpha=-lr)
        torch._foreach_add_(w, m, alpha=-lr * beta)


class Titans(Rule):
    """Rule titans (spec.nl:25).

    Titans (arXiv:2501.00663), eqs. 13-14
    """

    states = ("S",)

    def __init__(self, params: Any, lr: float, momentum: float, decay: float) -> None:
        defaults = {"lr": lr, "momentum": momentum, "decay": decay}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"S": torch.zeros_like(w)}

    @staticmethod
    def move(at: Bucket) -> None:
        """Move parameters of any shape."""
        lr, momentum, decay = at.given("lr", "momentum", "decay")
        w, grad = at.w, at.grad
        (S,) = at.lists("S")
        # S = momentum * S - lr * grad   (spec.nl:27)
        torch._foreach_mul_(S, momentum)
        torch._foreach_add_(S, grad, alpha=-lr)
        # self = (1 - decay) * self + S   (spec.nl:28)
        torch._foreach_mul_(w, 1 - decay)
        torch._foreach_add_(w, S)


class GatedDelta(Rule):
    """Rule gated_delta (spec.nl:32).

    the delta rule with a gate: decay first, then the gradient at the decayed value
    """

    asks = True

    def __init__(self, params: Any, lr: float, gate: float) -> None:
        defaults = {"lr": lr, "gate": gate}
        super().__init__(params, defaults)

    @staticmethod
    def move(at: Bucket) -> Points:
        """Move parameters of any shape."""
        lr, gate = at.given("lr", "gate")
        w = at.w
        # self = gate * self   (spec.nl:33)
        torch._foreach_mul_(w, gate)
        # the gradient with the parameters at another value   (spec.nl:34)
        grad_at = yield w
        # self = self - lr * grad(at = self)   (spec.nl:34)
        torch._foreach_add_(w, grad_at, alpha=-lr)


class Adam(Rule):
    """Rule adam (spec.nl:38).

    Adam (arXiv:1412.6980); its weight decay is part of the gradient
    """

    states = ("m", "v", "n")
    numbers = ("n",)

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-08,
        weight_decay: float = 0,
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
        # n = n + 1   (spec.nl:42)
        n = n + 1
        # g = grad + weight_decay * self   (spec.nl:43)
        g = torch._foreach_add(grad, w, alpha=weight_decay)
        # m = beta1 * m + (1 - beta1) * g   (spec.nl:44)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, g, alpha=1 - beta1)
        # v = beta2 * v + (1 - beta2) * g^2   (spec.nl:45)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        # self = self - lr * (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)   (spec.nl:46)
        value = torch._foreach_div(v, 1 - beta2**n)
        torch._foreach_sqrt_(value)
        torch._foreach_add_(value, eps)
        torch._foreach_addcdiv_(w, m, value, value=-lr / (1 - beta1**n))
        at.keep({"n": n})


class Adamw(Rule):
    """Rule adamw (spec.nl:50).

    Adam with decoupled weight decay (arXiv:1711.05101)
    """

    states = ("m", "v", "n")
    numbers = ("n",)

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
        # n = n + 1   (spec.nl:54)
        n = n + 1
        # m = beta1 * m + (1 - beta1) * grad   (spec.nl:55)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grad, alpha=1 - beta1)
        # v = beta2 * v + (1 - beta2) * grad^2   (spec.nl:56)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grad, grad, value=1 - beta2)
        # self = (1 - lr * weight_decay) * self   (spec.nl:57)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)   (spec.nl:58)
        value = torch._foreach_div(v, 1 - beta2**n)
        torch._foreach_sqrt_(value)
        torch._foreach_add_(value, eps)
        torch._foreach_addcdiv_(w, m, value, value=-lr / (1 - beta1**n))
        at.keep({"n": n})


class Adagrad(Rule):
    """Rule adagrad (spec.nl:62).

    AdaGrad (Duchi et al. 2011), a step for each entry
    """

    states = ("v",)

    def __init__(self, params: Any, lr: float = 0.01, eps: float = 1e-10) -> None:
        defaults = {"lr": lr, "eps": eps}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"v": torch.zeros_like(w)}

    @staticmethod
    def move(at: Bucket) -> None:
        """Move parameters of any shape."""
        lr, eps = at.given("lr", "eps")
        w, grad = at.w, at.grad
        (v,) = at.lists("v")
        # v = v + grad^2   (spec.nl:64)
        torch._foreach_addcmul_(v, grad, grad)
        # self = self - lr * grad / (sqrt(v) + eps)   (spec.nl:65)
        value = torch._foreach_sqrt(v)
        torch._foreach_add_(value, eps)
        torch._foreach_addcdiv_(w, grad, value, value=-lr)


class Muon(Rule):
    """Rule muon (spec.nl:69).

    Muon (Jordan 2024): Nesterov's momentum, orthogonalised; vectors are moved by the momentum alone
    """

    states = ("m",)
    shaped = True

    def __init__(
        self, params: Any, lr: float = 0.001, beta: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"m": torch.zeros_like(w)}

    @staticmethod
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        lr, beta, weight_decay = at.given("lr", "beta", "weight_decay")
        in_ = at.w[0].shape[-1]
        out = at.w[0].shape[-2]
        w, grad = at.w, at.grad
        (m,) = at.lists("m")
        # m = beta * m + grad   (spec.nl:71)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # self = (1 - lr * weight_decay) * self   (spec.nl:72)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * sqrt(max(1, out / in)) * newton_schulz(grad + beta * m)   (spec.nl:73)
        value = torch._foreach_add(grad, m, alpha=beta)
        value_1 = orthogonal(value, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        torch._foreach_add_(w, value_1, alpha=-lr * math.sqrt(max(1, out / in_)))

    @staticmethod
    def vectors(at: Bucket) -> None:
        """Move vectors of one shape."""
        lr, beta, weight_decay = at.given("lr", "beta", "weight_decay")
        in_ = at.w[0].shape[-1]
        out = 1
        w, grad = at.w, at.grad
        (m,) = at.lists("m")
        # m = beta * m + grad   (spec.nl:71)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # self = (1 - lr * weight_decay) * self   (spec.nl:72)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * sqrt(max(1, out / in)) * newton_schulz(grad + beta * m)   (spec.nl:73)
        torch._foreach_add_(w, grad, alpha=-lr * math.sqrt(max(1, out / in_)))
        torch._foreach_add_(w, m, alpha=-lr * math.sqrt(max(1, out / in_)) * beta)

    @staticmethod
    def scalars(at: Bucket) -> None:
        """Move scalars of one shape."""
        lr, beta, weight_decay = at.given("lr", "beta", "weight_decay")
        in_ = 1
        out = 1
        w, grad = at.w, at.grad
        (m,) = at.lists("m")
        # m = beta * m + grad   (spec.nl:71)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # self = (1 - lr * weight_decay) * self   (spec.nl:72)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * sqrt(max(1, out / in)) * newton_schulz(grad + beta * m)   (spec.nl:73)
        torch._foreach_add_(w, grad, alpha=-lr * math.sqrt(max(1, out / in_)))
        torch._foreach_add_(w, m, alpha=-lr * math.sqrt(max(1, out / in_)) * beta)


class Adamuon(Rule):
    """Rule adamuon (spec.nl:79).

    AdaMuon (arXiv:2507.11005): the sign of the momentum orthogonalised, over the root of its own
    second
    moment, scaled to the size of Adam's steps. The factor 0.2 is what other implementations use; it
    was
    not checked against the paper.
    """

    states = ("m", "v")
    shaped = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        beta: float = 0.95,
        eps: float = 1e-08,
        weight_decay: float = 0.1,
    ) -> None:
        defaults = {"lr": lr, "beta": beta, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"m": torch.zeros_like(w), "v": torch.zeros_like(w)}

    @staticmethod
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        lr, beta, eps, weight_decay = at.given("lr", "beta", "eps", "weight_decay")
        in_ = at.w[0].shape[-1]
        out = at.w[0].shape[-2]
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        # m = beta * m + grad   (spec.nl:82)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # o = newton_schulz(sign(m))   (spec.nl:83)
        value = torch._foreach_sign(m)
        o = orthogonal(value, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        # v = beta * v + (1 - beta) * o^2   (spec.nl:84)
        torch._foreach_mul_(v, beta)
        torch._foreach_addcmul_(v, o, o, value=1 - beta)
        # step = o / (sqrt(v) + eps)   (spec.nl:85)
        value = torch._foreach_sqrt(v)
        torch._foreach_add_(value, eps)
        step = torch._foreach_div(o, value)
        # scale = 0.2 * sqrt(in * out) / (norm(step, over = (in, out)) + eps)   (spec.nl:86)
        scale = [torch.linalg.vector_norm(step_i, dim=(-2, -1)) for step_i in step]
        torch._foreach_add_(scale, eps)
        torch._foreach_reciprocal_(scale)
        torch._foreach_mul_(scale, 0.2 * math.sqrt(in_ * out))
        # self = (1 - lr * weight_decay) * self - lr * scale * step   (spec.nl:87)
        value = torch._foreach_mul(scale, lr)
        value_1 = [value_i[..., None, None] for value_i in value]
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        torch._foreach_addcmul_(w, value_1, step, value=-1)

    @staticmethod
    def vectors(at: Bucket) -> None:
        """Move vectors of one shape."""
        lr, beta, eps, weight_decay = at.given("lr", "beta", "eps", "weight_decay")
        in_ = at.w[0].shape[-1]
        out = 1
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        # m = beta * m + grad   (spec.nl:82)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # o = newton_schulz(sign(m))   (spec.nl:83)
        o = torch._foreach_sign(m)
        # v = beta * v + (1 - beta) * o^2   (spec.nl:84)
        torch._foreach_mul_(v, beta)
        torch._foreach_addcmul_(v, o, o, value=1 - beta)
        # step = o / (sqrt(v) + eps)   (spec.nl:85)
        value = torch._foreach_sqrt(v)
        torch._foreach_add_(value, eps)
        step = torch._foreach_div(o, value)
        # scale = 0.2 * sqrt(in * out) / (norm(step, over = (in, out)) + eps)   (spec.nl:86)
        scale = [torch.linalg.vector_norm(step_i, dim=-1) for step_i in step]
        torch._foreach_add_(scale, eps)
        torch._foreach_reciprocal_(scale)
        torch._foreach_mul_(scale, 0.2 * math.sqrt(in_ * out))
        # self = (1 - lr * weight_decay) * self - lr * scale * step   (spec.nl:87)
        value = torch._foreach_mul(scale, lr)
        value_1 = [value_i[..., None] for value_i in value]
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        torch._foreach_addcmul_(w, value_1, step, value=-1)

    @staticmethod
    def scalars(at: Bucket) -> None:
        """Move scalars of one shape."""
        lr, beta, eps, weight_decay = at.given("lr", "beta", "eps", "weight_decay")
        in_ = 1
        out = 1
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        # m = beta * m + grad   (spec.nl:82)
        torch._foreach_mul_(m, beta)
        torch._foreach_add_(m, grad)
        # o = newton_schulz(sign(m))   (spec.nl:83)
        o = torch._foreach_sign(m)
        # v = beta * v + (1 - beta) * o^2   (spec.nl:84)
        torch._foreach_mul_(v, beta)
        torch._foreach_addcmul_(v, o, o, value=1 - beta)
        # step = o / (sqrt(v) + eps)   (spec.nl:85)
        value = torch._foreach_sqrt(v)
        torch._foreach_add_(value, eps)
        step = torch._foreach_div(o, value)
        # scale = 0.2 * sqrt(in * out) / (norm(step, over = (in, out)) + eps)   (spec.nl:86)
        scale = torch._foreach_abs(step)
        torch._foreach_add_(scale, eps)
        torch._foreach_reciprocal_(scale)
        torch._foreach_mul_(scale, 0.2 * math.sqrt(in_ * out))
        # self = (1 - lr * weight_decay) * self - lr * scale * step   (spec.nl:87)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        torch._foreach_addcmul_(w, scale, step, value=-lr)


class Rmsuon(Rule):
    """Rule rmsuon (spec.nl:91).

    RMSuon, of the authors of ARS: Adam's step orthogonalised after whitening, with the length it
    had
    """

    states = ("m", "v", "n")
    numbers = ("n",)
    shaped = True

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
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        lr, beta1, beta2, eps, weight_decay = at.given(
            "lr", "beta1", "beta2", "eps", "weight_decay"
        )
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        (n,) = at.counts("n")
        # n = n + 1   (spec.nl:95)
        n = n + 1
        # m = beta1 * m + (1 - beta1) * grad   (spec.nl:96)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grad, alpha=1 - beta1)
        # v = beta2 * v + (1 - beta2) * grad^2   (spec.nl:97)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grad, grad, value=1 - beta2)
        # white = m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + eps)   (spec.nl:98)
        value = torch._foreach_div(v, 1 - beta2**n)
        torch._foreach_sqrt_(value)
        torch._foreach_add_(value, eps)
        white = torch._foreach_div(m, value)
        torch._foreach_div_(white, 1 - beta1**n)
        # self = (1 - lr * weight_decay) * self   (spec.nl:99)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * norm(white, over = (in, out)) * newton_schulz(white)   (spec.nl:100)
        value = [torch.linalg.vector_norm(white_i, dim=(-2, -1)) for white_i in white]
        torch._foreach_mul_(value, lr)
        value_1 = [value_i[..., None, None] for value_i in value]
        value_2 = orthogonal(white, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        torch._foreach_addcmul_(w, value_1, value_2, value=-1)
        at.keep({"n": n})

    @staticmethod
    def vectors(at: Bucket) -> None:
        """Move vectors of one shape."""
        lr, beta1, beta2, eps, weight_decay = at.given(
            "lr", "beta1", "beta2", "eps", "weight_decay"
        )
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        (n,) = at.counts("n")
        # n = n + 1   (spec.nl:95)
        n = n + 1
        # m = beta1 * m + (1 - beta1) * grad   (spec.nl:96)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grad, alpha=1 - beta1)
        # v = beta2 * v + (1 - beta2) * grad^2   (spec.nl:97)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grad, grad, value=1 - beta2)
        # white = m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + eps)   (spec.nl:98)
        value = torch._foreach_div(v, 1 - beta2**n)
        torch._foreach_sqrt_(value)
        torch._foreach_add_(value, eps)
        white = torch._foreach_div(m, value)
        torch._foreach_div_(white, 1 - beta1**n)
        # self = (1 - lr * weight_decay) * self   (spec.nl:99)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * norm(white, over = (in, out)) * newton_schulz(white)   (spec.nl:100)
        value = [torch.linalg.vector_norm(white_i, dim=-1) for white_i in white]
        torch._foreach_mul_(value, lr)
        value_1 = [value_i[..., None] for value_i in value]
        torch._foreach_addcmul_(w, value_1, white, value=-1)
        at.keep({"n": n})

    @staticmethod
    def scalars(at: Bucket) -> None:
        """Move scalars of one shape."""
        lr, beta1, beta2, eps, weight_decay = at.given(
            "lr", "beta1", "beta2", "eps", "weight_decay"
        )
        w, grad = at.w, at.grad
        m, v = at.lists("m", "v")
        (n,) = at.counts("n")
        # n = n + 1   (spec.nl:95)
        n = n + 1
        # m = beta1 * m + (1 - beta1) * grad   (spec.nl:96)
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grad, alpha=1 - beta1)
        # v = beta2 * v + (1 - beta2) * grad^2   (spec.nl:97)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grad, grad, value=1 - beta2)
        # white = m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + eps)   (spec.nl:98)
        value = torch._foreach_div(v, 1 - beta2**n)
        torch._foreach_sqrt_(value)
        torch._foreach_add_(value, eps)
        white = torch._foreach_div(m, value)
        torch._foreach_div_(white, 1 - beta1**n)
        # self = (1 - lr * weight_decay) * self   (spec.nl:99)
        torch._foreach_mul_(w, 1 - lr * weight_decay)
        # self = self - lr * norm(white, over = (in, out)) * newton_schulz(white)   (spec.nl:100)
        value = torch._foreach_abs(white)
        torch._foreach_addcmul_(w, value, white, value=-lr)
        at.keep({"n": n})


class Sam(Rule):
    """Rule sam (spec.nl:105).

    Sharpness-aware minimisation (arXiv:2010.01412): the gradient a step of length rho uphill. The
    paper's length is that of all parameters together; here each parameter has its own.
    """

    shaped = True
    asks = True

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        defaults = {"lr": lr, "rho": rho}
        super().__init__(params, defaults)

    @staticmethod
    def matrices(at: Bucket) -> Points:
        """Move matrices of one shape."""
        lr, rho = at.given("lr", "rho")
        w, grad = at.w, at.grad
        # the gradient with the parameters at another value   (spec.nl:106)
        value = [unit(grad_i, dim=(-2, -1)) for grad_i in grad]
        torch._foreach_mul_(value, rho)
        torch._foreach_add_(value, w)
        grad_at = yield value
        # self = self - lr * grad(at = self + rho * unit(grad, over = (in, out)))   (spec.nl:106)
        torch._foreach_add_(w, grad_at, alpha=-lr)

    @staticmethod
    def vectors(at: Bucket) -> Points:
        """Move vectors of one shape."""
        lr, rho = at.given("lr", "rho")
        w, grad = at.w, at.grad
        # the gradient with the parameters at another value   (spec.nl:106)
        value = [unit(grad_i) for grad_i in grad]
        torch._foreach_mul_(value, rho)
        torch._foreach_add_(value, w)
        grad_at = yield value
        # self = self - lr * grad(at = self + rho * unit(grad, over = (in, out)))   (spec.nl:106)
        torch._foreach_add_(w, grad_at, alpha=-lr)

    @staticmethod
    def scalars(at: Bucket) -> Points:
        """Move scalars of one shape."""
        lr, rho = at.given("lr", "rho")
        w, grad = at.w, at.grad
        # the gradient with the parameters at another value   (spec.nl:106)
        value = [unit(grad_i[..., None])[..., 0] for grad_i in grad]
        value_1 = torch._foreach_add(w, value, alpha=rho)
        grad_at = yield value_1
        # self = self - lr * grad(at = self + rho * unit(grad, over = (in, out)))   (spec.nl:106)
        torch._foreach_add_(w, grad_at, alpha=-lr)


class DeltaMomentum(Rule):
    """Rule delta_momentum (spec.nl:111).

    Delta momentum, Nested Learning (arXiv:2512.24695), eqs. 48-49: the momentum forgets along the
    gradient. As printed the term that erases has no step; here the gradient in it has length 1.
    """

    states = ("m",)
    rows = (1, 0)
    shaped = True

    def __init__(self, params: Any, lr: float, alpha: float = 0.9) -> None:
        defaults = {"lr": lr, "alpha": alpha}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {"m": torch.zeros_like(w)}

    @staticmethod
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        lr, alpha = at.given("lr", "alpha")
        w, grad = at.w, at.grad
        (m,) = at.lists("m")
        # g = unit(grad, over = (in, out))   (spec.nl:113)
        g = [unit(grad_i, dim=(-2, -1)) for grad_i in grad]
        # m = m @ (alpha - transpose(g) @ g) - lr * grad   (spec.nl:114)
        value = [g_i.mT @ g_i for g_i in g]
        torch._foreach_neg_(value)
        value_1 = [m_i @ value_i for m_i, value_i in zip(m, value, strict=True)]
        torch._foreach_mul_(m, alpha)
        torch._foreach_add_(m, value_1)
        torch._foreach_add_(m, grad, alpha=-lr)
        # self = self + m   (spec.nl:115)
        torch._foreach_add_(w, m)


def read_deep_momentum_mlp(x: Tensor, parts: dict[str, Tensor], more: int) -> Tensor:
    """Read mlp(in -> 2*in -> in), at `more` further axes of vectors."""
    y = times(parts["layer1.weight"], x, more)
    y = F.gelu(y)
    y = times(parts["layer2.weight"], y, more)
    return y


class DeepMomentum(Rule):
    """Rule deep_momentum (spec.nl:121).

    Deep momentum, Nested Learning (arXiv:2512.24695), eq. 50: the momentum is a network, and what
    it
    answers to the gradient is the step. The paper leaves its objective open; here it learns to
    answer a
    row of the gradient, scaled to length 1, with the negative of that row.
    """

    states = ("m",)
    rows = (0,)
    shaped = True

    def __init__(self, params: Any, lr: float, alpha: float = 0.99, rate: float = 0.1) -> None:
        defaults = {"lr": lr, "alpha": alpha, "rate": rate}
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        if axes == 2:
            lead = w.shape[: w.ndim - 2]
            in_ = w.shape[-1]
            return {
                "m": {
                    "layer1.weight": drawn(w.new_empty((*lead, 2 * in_, in_)), in_),
                    "layer2.weight": drawn(w.new_empty((*lead, in_, 2 * in_)), 2 * in_),
                },
            }
        lead = w.shape[: w.ndim - 1]
        in_ = w.shape[-1]
        return {
            "m": {
                "layer1.weight": drawn(w.new_empty((*lead, 2 * in_, in_)), in_),
                "layer2.weight": drawn(w.new_empty((*lead, in_, 2 * in_)), 2 * in_),
            },
        }

    @staticmethod
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        lr, alpha, rate = at.given("lr", "alpha", "rate")
        out = at.w[0].shape[-2]
        w, grad = at.w, at.grad
        (m,) = at.lists("m")

        # the gradient of the objective of m   (spec.nl:126)
        def objective_1(m: dict[str, Tensor], grad_i: Tensor) -> Tensor:
            x = unit(grad_i)
            x_1 = read_deep_momentum_mlp(x, m, 1) - -x
            x_2 = (0.5 * (x_1 * x_1).sum(-1) / out).sum(-1)
            return x_2

        slope = slopes(objective_1, m, grad)
        # self = alpha * self - rate * grad   (spec.nl:126)
        for _, m_p, slope_p in parts(m, slope):
            torch._foreach_mul_(m_p, alpha)
            torch._foreach_add_(m_p, slope_p, alpha=-rate)
        # self = self + lr * m(unit(grad, over = in))   (spec.nl:129)
        value = [
            read_deep_momentum_mlp(unit(grad_i), m_i, 1)
            for grad_i, m_i in zip(grad, m, strict=True)
        ]
        torch._foreach_add_(w, value, alpha=lr)

    @staticmethod
    def vectors(at: Bucket) -> None:
        """Move vectors of one shape."""
        lr, alpha, rate = at.given("lr", "alpha", "rate")
        out = 1
        w, grad = at.w, at.grad
        (m,) = at.lists("m")

        # the gradient of the objective of m   (spec.nl:126)
        def objective_1(m: dict[str, Tensor], grad_i: Tensor) -> Tensor:
            x = unit(grad_i)
            x_1 = read_deep_momentum_mlp(x, m, 0) - -x
            return 0.5 * (x_1 * x_1).sum(-1) / out

        slope = slopes(objective_1, m, grad)
        # self = alpha * self - rate * grad   (spec.nl:126)
        for _, m_p, slope_p in parts(m, slope):
            torch._foreach_mul_(m_p, alpha)
            torch._foreach_add_(m_p, slope_p, alpha=-rate)
        # self = self + lr * m(unit(grad, over = in))   (spec.nl:129)
        value = [
            read_deep_momentum_mlp(unit(grad_i), m_i, 0)
            for grad_i, m_i in zip(grad, m, strict=True)
        ]
        torch._foreach_add_(w, value, alpha=lr)


class M3(Rule):
    """Rule m3 (spec.nl:135).

    M3, Nested Learning (arXiv:2512.24695), Algorithm 1: momentum at two time scales,
    orthogonalised,
    over the root of summed squares. The slow one takes the gradients of the f steps before. The
    paper
    gives no values; nothing decays, as printed.
    """

    states = ("M1", "M2", "O2", "V", "grad.every.f", "grad.calls")
    numbers = ("grad.calls",)
    whole = ("f",)
    shaped = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        beta3: float = 0.9,
        alpha: float = 1,
        eps: float = 1e-08,
        f: int = 100,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "beta3": beta3,
            "alpha": alpha,
            "eps": eps,
            "f": f,
        }
        super().__init__(params, defaults)

    @staticmethod
    def start(w: Tensor, axes: int) -> dict[str, Any]:
        """Make the states of a parameter."""
        return {
            "M1": torch.zeros_like(w),
            "M2": torch.zeros_like(w),
            "O2": torch.zeros_like(w),
            "V": torch.zeros_like(w),
            "grad.every.f": torch.zeros_like(w),
            "grad.calls": 0,
        }

    @staticmethod
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        lr, beta1, beta2, beta3, alpha, eps, f = at.given(
            "lr", "beta1", "beta2", "beta3", "alpha", "eps", "f"
        )
        w, grad = at.w, at.grad
        M1, M2, O2, V = at.lists("M1", "M2", "O2", "V")
        (grad_every_f,) = at.lists("grad.every.f")
        calls = at.count()
        torch._foreach_add_(grad_every_f, grad)
        # M1 = M1 + beta1 * grad   (spec.nl:140)
        torch._foreach_add_(M1, grad, alpha=beta1)
        # V = V + beta2 * grad^2   (spec.nl:141)
        torch._foreach_addcmul_(V, grad, grad, value=beta2)
        # O1 = newton_schulz(M1)   (spec.nl:142)
        O1 = orthogonal(M1, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
        # self = self - lr * (O1 + alpha * O2) / (sqrt(V) + eps)   (spec.nl:143)
        value = torch._foreach_mul(O1, lr)
        torch._foreach_add_(value, O2, alpha=lr * alpha)
        value_1 = torch._foreach_sqrt(V)
        torch._foreach_add_(value_1, eps)
        torch._foreach_addcdiv_(w, value, value_1, value=-1)
        # every f steps   (spec.nl:144)
        if calls % f == 0:
            # M2 = M2 + beta3 * grad   (spec.nl:145)
            torch._foreach_add_(M2, grad_every_f, alpha=beta3)
            # O2 = newton_schulz(M2)   (spec.nl:146)
            value = orthogonal(M2, 5, ((3.4445, -4.775, 2.0315),), 1e-07)
            torch._foreach_copy_(O2, value)
        if calls % f == 0:
            torch._foreach_zero_(grad_every_f)

    @staticmethod
    def vectors(at: Bucket) -> None:
        """Move vectors of one shape."""
        lr, beta1, beta2, beta3, alpha, eps, f = at.given(
            "lr", "beta1", "beta2", "beta3", "alpha", "eps", "f"
        )
        w, grad = at.w, at.grad
        M1, M2, O2, V = at.lists("M1", "M2", "O2", "V")
        (grad_every_f,) = at.lists("grad.every.f")
        calls = at.count()
        torch._foreach_add_(grad_every_f, grad)
        # M1 = M1 + beta1 * grad   (spec.nl:140)
        torch._foreach_add_(M1, grad, alpha=beta1)
        # V = V + beta2 * grad^2   (spec.nl:141)
        torch._foreach_addcmul_(V, grad, grad, value=beta2)
        # O1 = newton_schulz(M1)   (spec.nl:142)
        O1 = [M1_i.clone() for M1_i in M1]
        # self = self - lr * (O1 + alpha * O2) / (sqrt(V) + eps)   (spec.nl:143)
        value = torch._foreach_mul(O1, lr)
        torch._foreach_add_(value, O2, alpha=lr * alpha)
        value_1 = torch._foreach_sqrt(V)
        torch._foreach_add_(value_1, eps)
        torch._foreach_addcdiv_(w, value, value_1, value=-1)
        # every f steps   (spec.nl:144)
        if calls % f == 0:
            # M2 = M2 + beta3 * grad   (spec.nl:145)
            torch._foreach_add_(M2, grad_every_f, alpha=beta3)
            # O2 = newton_schulz(M2)   (spec.nl:146)
            torch._foreach_copy_(O2, M2)
        if calls % f == 0:
            torch._foreach_zero_(grad_every_f)

    scalars = vectors


class Dgd(Rule):
    """Rule dgd (spec.nl:155).

    Delta gradient descent, Nested Learning (arXiv:2512.24695), eqs. 56-57: the W that makes
    1/2 ||W key - u||^2 + 1/(2 lr) ||W - self||^2 least, where -u is the gradient at the map's
    output. The
    paper's step, lr / (1 + lr), is that of keys of length 1; this one is exact for any key. Its
    appendix
    C (eqs. 114-121) has other signs and names. Several tokens at once, as in an optimizer, are left
    open:
    here they erase with the mean of key key^T.
    """

    rows = (0,)
    shaped = True
    keyed = True

    def __init__(self, params: Any, lr: float) -> None:
        defaults = {"lr": lr}
        super().__init__(params, defaults)

    @staticmethod
    def matrices(at: Bucket) -> None:
        """Move matrices of one shape."""
        (lr,) = at.given("lr")
        w, grad = at.w, at.grad
        key = at.keys()
        # step = lr / (1 + lr * mean(<key, key>, over = tokens))   (spec.nl:156)
        step = [(key_i * key_i).sum(-1).mean(-1) for key_i in key]
        torch._foreach_mul_(step, lr)
        torch._foreach_add_(step, 1)
        torch._foreach_reciprocal_(step)
        torch._foreach_mul_(step, lr)
        # self = self @ (1 - step * mean(outer(key, key), over = tokens)) - step * grad
        # (spec.nl:157)
        value = [step_i[..., None, None] for step_i in step]
        value_1 = [key_i.mT @ key_i / key_i.shape[0] for key_i in key]
        value_2 = torch._foreach_mul(value, value_1)
        torch._foreach_neg_(value_2)
        value_3 = [w_i @ value_2_i for w_i, value_2_i in zip(w, value_2, strict=True)]
        torch._foreach_add_(w, value_3)
        torch._foreach_addcmul_(w, value, grad, value=-1)

    @staticmethod
    def vectors(at: Bucket) -> None:
        """Move vectors of one shape."""
        (lr,) = at.given("lr")
        w, grad = at.w, at.grad
        key = at.keys()
        # step = lr / (1 + lr * mean(<key, key>, over = tokens))   (spec.nl:156)
        step = [(key_i * key_i).sum(-1).mean(-1) for key_i in key]
        torch._foreach_mul_(step, lr)
        torch._foreach_add_(step, 1)
        torch._foreach_reciprocal_(step)
        torch._foreach_mul_(step, lr)
        # self = self @ (1 - step * mean(outer(key, key), over = tokens)) - step * grad
        # (spec.nl:157)
        value = [step_i[..., None, None] for step_i in step]
        value_1 = [key_i.mT @ key_i / key_i.shape[0] for key_i in key]
        value_2 = torch._foreach_mul(value, value_1)
        torch._foreach_neg_(value_2)
        value_3 = [matvec(value_2_i.mT, w_i) for value_2_i, w_i in zip(value_2, w, strict=True)]
        value_4 = [step_i[..., None] for step_i in step]
        torch._foreach_add_(w, value_3)
        torch._foreach_addcmul_(w, value_4, grad, value=-1)
