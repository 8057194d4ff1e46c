"""What the values of a block can be: intervals, by arithmetic over its expressions.

In: a block. Out: `Bounds`, which gives an interval for any expression over its streams. Inputs,
parameters, states and what maps give are any finite numbers; streams are followed through their
equations. Loads no torch and looks at no initial value.
"""

from __future__ import annotations

from nlc.ir.expr import Expr, postorder
from nlc.ir.system import Block, Equation
from nlc.passes.interval import Interval
from nlc.passes.interval_rows import ROWS, Range, unknown

# layouts through which a logarithm may be taken
TRANSPARENT = ("let", "stop", "unsqueeze", "reshape", "permute", "transpose", "slice")
# streams followed into each other, and factors into factors, before it is called a day
DEPTH = 100


class Bounds:
    """The ranges of all values of one block; each expression is looked at once."""

    def __init__(self, block: Block):
        self.equations = {s.name: s for s in block.steps if isinstance(s, Equation)}
        self._streams: dict[str, Range] = {}
        self._known: dict[int, tuple[Expr, Range]] = {}
        for name, equation in self.equations.items():
            self._streams[name] = self.range(equation.value)

    def range(self, expr: Expr) -> Range:
        """Return what is known of an expression's entries and of its norm."""
        for node in postorder([expr]):
            if id(node) not in self._known:
                self._known[id(node)] = (node, self._row(node))
        return self._known[id(expr)][1]

    def of(self, expr: Expr) -> Interval:
        """Return an interval that holds every entry of an expression's value."""
        return self.range(expr).entry

    def log(self, expr: Expr, depth: int = DEPTH) -> Interval:
        """Return an interval for the logarithm of a positive value, such as a gate.

        What is written as an exponential, or a product or power of such, keeps its exponent.
        """
        if depth:
            match expr.op:
                case "exp":
                    return self.of(expr.args[0])
                case "mul":
                    return self.log(expr.args[0], depth - 1) + self.log(expr.args[1], depth - 1)
                case "div":
                    return self.log(expr.args[0], depth - 1) - self.log(expr.args[1], depth - 1)
                case "pow":
                    return self.of(expr.args[1]) * self.log(expr.args[0], depth - 1)
                case "where":
                    return self.log(expr.args[1], depth - 1).hull(self.log(expr.args[2], depth - 1))
                case "stream" if expr.attr("name") in self._streams:
                    return self.log(self.equations[expr.attr("name")].value, depth - 1)
                case op if op in TRANSPARENT:
                    return self.log(expr.args[0], depth - 1)
        return self.of(expr).log()

    def _row(self, node: Expr) -> Range:
        if node.op == "stream":
            # one that has no value yet is an input's default, or read before its equation
            return self._streams.get(node.attr("name"), unknown(node))
        return ROWS[node.op](node, tuple(self._known[id(arg)][1] for arg in node.args))


def bounds(block: Block, expr: Expr) -> Interval:
    """Return an interval that holds every entry of an expression over a block's streams."""
    return Bounds(block).of(expr)


def log_gate(block: Block, expr: Expr) -> Interval:
    """Return an interval for the logarithm of a gate; everything where it may be negative.

    RWKV-7's `exp(-exp(-0.5) * sigmoid(.))` gives (-0.607, 0).
    """
    return Bounds(block).log(expr)
