"""The truth about rules as optimizers: each parameter by itself, one call at a time, in float64.

In: motions by parameter, the numbers of the rule's arguments, the values. Out: the values and
states after each call. Equations run in the order in which they stand, each over what its names
hold on its line; gradients inside them come from torch's autograd. Shares the rows of the token
interpreter and nothing with the emitter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nlc.ir.expr import Expr, Graph, rewrite
from nlc.ir.rule import Action, Ask, Every, Loop, Motion, Set, Slope, When, expressions, flat
from nlc.ir.shape import sizes
from nlc.runtime.evaluate import TokenFrame, evaluate, order

Values = Mapping[str, Tensor]
# gives the gradients with the parameters at other values
Again = Callable[[dict[str, Tensor]], Values]
Run = Generator[Tensor, Tensor, None]


@dataclass
class RuleReference:
    """A rule over named tensors; `motions` have the tensors' own sizes.

    `axes` says how many axes of a tensor are its own, the others being copies. `period` is that of
    the level: a call counts every `period` steps, with the sum of the gradients.
    """

    motions: Mapping[str, Motion]
    arguments: Mapping[str, float]
    values: dict[str, Tensor]
    axes: Mapping[str, int]
    period: int = 1
    steps: int = 0
    movers: dict[str, Mover] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)

    def step(
        self, gradients: Values, again: Again | None = None, keys: Values | None = None
    ) -> None:
        """Take one step; a parameter without a gradient stays as it is.

        `keys` are the inputs of maps at the tokens of the step, [tokens, in], where there are any.
        """
        self.steps += 1
        for name, gradient in gradients.items():
            before = self.sums.get(name)
            self.sums[name] = gradient.double() + (0 if before is None else before)
        for name, inputs in (keys or {}).items():
            known = [self.keys[name]] if name in self.keys else []
            self.keys[name] = torch.cat([*known, inputs.double()])
        if self.steps % self.period:
            return
        runs: dict[str, Run] = {}
        points: dict[str, Tensor] = {}
        for name, gradient in self.sums.items():
            if name not in self.movers:
                self.movers[name] = Mover(
                    self.motions[name], self.arguments, self.values[name], self.axes[name]
                )
            runs[name] = self.movers[name].call(gradient, self.keys.get(name))
        answers: dict[str, Tensor | None] = dict.fromkeys(runs)
        while runs:
            points = {}
            for name, run in list(runs.items()):
                try:
                    answer = answers[name]
                    points[name] = next(run) if answer is None else run.send(answer)
                except StopIteration:
                    del runs[name]
            if points:
                assert again is not None, "this rule takes gradients at other values"
                found = again({**self.values, **points})
                answers = {name: found[name].double() for name in points}
        self.sums, self.keys = {}, {}
        self.values = self.values | {name: mover.value for name, mover in self.movers.items()}

    def state(self, name: str) -> dict[str, Tensor]:
        """Return the states of one parameter, by cell."""
        mover = self.movers[name]
        return {cell.name: mover.outside(mover.held[cell.name]) for cell in mover.motion.cells}

    def evaluated(self, name: str) -> Tensor:
        """Return the value of a parameter that is read outside training."""
        mover = self.movers.get(name)
        if mover is None or mover.motion.evaluated is None:
            return self.values[name]
        return mover.outside(mover.at(mover.motion.evaluated))


class Mover:
    """One parameter and its states; every tensor is [copies, *own shape]."""

    def __init__(self, motion: Motion, arguments: Mapping[str, float], value: Tensor, axes: int):
        self.motion = motion
        self.whole = tuple(value.shape)
        # a vector may move as a matrix of one row: then it has fewer axes than the motion
        own = sizes(motion.shape)
        self.lead = self.whole[: len(self.whole) - axes]
        self.copies = int(torch.Size(self.lead).numel())
        start = value.detach().double().reshape(self.copies, *own).clone()
        self.keys = torch.zeros(1, *own[-1:], dtype=torch.float64)
        self.numbers = {k: torch.tensor(v, dtype=torch.float64) for k, v in arguments.items()}
        self.numbers["in"] = torch.tensor(float(own[-1] if own else 1), dtype=torch.float64)
        self.numbers["out"] = torch.tensor(
            float(own[-2] if len(own) > 1 else 1), dtype=torch.float64
        )
        self.held: dict[str, Tensor] = {"self.initial": start}
        for cell in motion.cells:
            first = self.at(cell.start).expand(self.copies, *sizes(cell.shape)).clone()
            if cell.draw == "normal":
                first = torch.randn_like(first) * first
            if cell.size is not None:
                first = first.uniform_(-1, 1) / cell.size.size**0.5
            self.held[cell.name] = first
        self.held["self"] = start
        self.calls = 0
        self.sums = {
            node.attr("name"): torch.zeros_like(start)
            for root in expressions(motion.actions)
            for node in order(root)
            if node.op == "stream" and node.attr("name").startswith("grad.every.")
        }

    @property
    def value(self) -> Tensor:
        """The parameter in its own layout."""
        return self.held["self"].reshape(self.whole)

    def outside(self, tensor: Tensor) -> Tensor:
        """Give a tensor of a state the leading axes of the parameter."""
        return tensor.reshape((*self.lead, *tensor.shape[1:]))

    def at(self, expr: Expr) -> Tensor:
        """Evaluate an expression over what the names hold now."""
        graph = Graph()
        held: dict[str, Tensor] = {}

        def over_tokens(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if node.op != "window":
                return None
            name = f"window.{len(held)}"
            held[name] = self.over_tokens(node)
            return graph.make("stream", name=name, shape=node.shape)

        [plain] = rewrite(graph, [expr], over_tokens)
        self.held |= held
        return evaluate(plain, self.frame({}))

    def over_tokens(self, node: Expr) -> Tensor:
        """Evaluate a sum or mean over the tokens, one by one."""
        total: Tensor | None = None
        for token in self.keys:
            self.held["key"] = token[None].reshape(1, *token.shape)
            value = evaluate(node.args[0], self.frame({}))
            total = value if total is None else total + value
        assert total is not None
        return total / len(self.keys) if node.attr("how") == "mean" else total

    def frame(self, variables: dict[tuple[str, str], Tensor]) -> TokenFrame:
        """What leaves stand for now."""
        names = {**self.held}
        return TokenFrame(
            self.copies, 0, self.numbers, names, {}, {}, {}, {}, {},
            tracks=False, variables=variables,
        )  # fmt: skip

    def call(self, gradient: Tensor, keys: Tensor | None) -> Run:
        """Run the equations once; yields points and takes the gradients there.

        A parameter that is no map's matrix has no input: its key is 0, at one token.
        """
        own = sizes(self.motion.shape)[-1:]
        self.keys = torch.zeros(1, *own, dtype=torch.float64) if keys is None else keys
        self.calls += 1
        self.held["grad"] = gradient.reshape(self.held["self"].shape)
        for name in self.sums:
            self.sums[name] = self.sums[name] + self.held["grad"]
        self.held |= self.sums
        yield from self.run(self.motion.actions)
        for action in flat(self.motion.actions):
            if isinstance(action, Every) and self.due(action):
                name = f"grad.every.{action.word}"
                if name in self.sums:
                    self.sums[name] = torch.zeros_like(self.sums[name])

    def due(self, action: Every) -> bool:
        """Say whether this call is one at which a block runs."""
        count = float(self.at(action.count))
        return self.calls % round(count) == 0

    def slope(self, action: Slope) -> dict[str, Tensor]:
        """Differentiate an objective, summed over the copies."""
        with torch.enable_grad():
            points = [
                self.at(p).expand(self.copies, *sizes(p.shape)).clone().requires_grad_()
                for p in action.points
            ]
            parts = [(action.memory, part) for part, _ in action.targets]
            frame = self.frame(dict(zip(parts, points, strict=True)))
            total = evaluate(action.objective, frame).expand(self.copies).sum()
            found = torch.autograd.grad(total, points, allow_unused=True)
        return {
            name: torch.zeros_like(point) if g is None else g
            for (_, name), point, g in zip(action.targets, points, found, strict=True)
        }

    def run(self, actions: tuple[Action, ...]) -> Run:
        """Run actions in order."""
        for action in actions:
            match action:
                case Set(target=target, value=value):
                    new = self.at(value)
                    old = self.held.get(target)
                    wide = new.expand(max(new.shape[0], self.copies), *new.shape[1:])
                    cell = target == "self" or any(c.name == target for c in self.motion.cells)
                    self.held[target] = wide.expand_as(old) if cell and old is not None else wide
                case Ask(target=target, point=point):
                    where = self.at(point).expand(self.copies, *sizes(point.shape))
                    there = yield where.reshape(self.whole)
                    self.held[target] = there.reshape(self.held["self"].shape)
                case Slope():
                    self.held |= self.slope(action)
                case When(condition=condition, body=body):
                    holds = self.at(condition).expand(self.copies) != 0
                    before = dict(self.held)
                    yield from self.run(body)
                    for name, old in before.items():
                        new = self.held[name]
                        chosen = holds.reshape(-1, *([1] * (new.dim() - 1)))
                        self.held[name] = torch.where(chosen, new, old)
                case Every(body=body):
                    if self.due(action):
                        yield from self.run(body)
                case Loop(count=count, body=body):
                    for _ in range(count):
                        yield from self.run(body)
