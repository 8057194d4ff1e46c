"""Say in the spec's words which term of an update decides how its state develops.

In: gates, reads and targets of a normal form, and the interval of what they come to. Out: text such
as `beta * ||k||^2 has no bound`. Streams are named, not followed.
"""

from __future__ import annotations

from nlc.ir.expr import Expr
from nlc.ir.normal_form import Gate
from nlc.ir.show import show_expr
from nlc.passes.interval import Interval
from nlc.passes.shaping import size_at


def gate_text(gate: Gate, held: Interval) -> str:
    """Say that a gate reaches beyond 1.

    >>> from nlc.ir.expr import Graph
    >>> a = Graph().make("stream", name="a", shape=())
    >>> gate_text(Gate("scalar", a), Interval(0.0, 1.5))
    'a reaches 1.5'
    """
    name = show_expr(gate.value)
    if held.is_point:
        return f"{name} is beyond 1"
    if not held.is_bounded:
        return f"{name} has no bound"
    return f"{name} reaches {held.high if held.high > 1 else held.low:.3g}"


def pair_text(read: Expr | None, target: Expr | None) -> str:
    """Say that a write reads along one vector and goes along another."""
    shown = [_plain(e) for e in (read, target) if e is not None]
    if len(shown) < 2:
        return f"what is read along {shown[0]}" if shown else "what is written"
    return f"reads along {shown[0]}, writes along {shown[1]}"


def strength_text(gate: Gate | None, read: Expr | None, target: Expr | None, held: Interval) -> str:
    """Say how far a write that erases along its own vector goes; `held` is its strength."""
    name = strength_name(gate, read, target)
    if not held.is_bounded:
        return f"{name} has no bound"
    if held.high > -held.low:
        return f"{name} reaches {held.high:.3g}"
    return f"{name} is added to the state"


def strengths_text(one: str, count: int, held: Interval) -> str:
    """Say how far several writes at one state go together; `one` is what is said of the worst."""
    if not held.is_bounded:
        return one
    return f"{one}, and the {count} writes of one token {held.size:.3g}"


def strength_name(gate: Gate | None, read: Expr | None, target: Expr | None) -> str:
    """Write s |u|^2: `beta * ||k||^2`."""
    if read is None or target is None:
        return f"a write along {_plain(target)}" if target is not None else "what is written"
    left, right = _factors(read), _factors(target)
    if gate is not None:
        dropped = next((f for f in left if f[0] is _bare(gate.value)), None)
        left = [f for f in left if f is not dropped]
    wide = [{id(f): show_expr(f) for f, is_wide in side if is_wide} for side in (left, right)]
    if not wide[0] or set(wide[0]) != set(wide[1]):
        return f"<{_plain(read)}, {_plain(target)}>"
    numbers = [f for f, is_wide in (*left, *right) if not is_wide]
    constant = 1.0
    for f in numbers:
        constant *= float(f.attr("value")) if f.op == "const" else 1.0
    words = [f"{abs(constant):.3g}"] if abs(constant) != 1 else []
    words += [_factor_text(f) for f in numbers if f.op != "const"]
    words.append(f"||{' * '.join(wide[1].values())}||^2")
    return " * ".join(words)


def _factor_text(expr: Expr) -> str:
    text = _plain(expr)
    return f"({text})" if expr.op in ("add", "sub") else text


def _factors(expr: Expr) -> list[tuple[Expr, bool]]:
    """Split a product, each factor with whether it varies along the last axis."""
    found: list[tuple[Expr, bool]] = []
    waiting = [(expr, bool(expr.shape) and expr.shape[-1].size > 1)]
    while waiting:
        node, wide = waiting.pop()
        match node.op:
            case "neg" | "let" | "stop":
                waiting.append((node.args[0], wide))
            case "mul":
                for arg in reversed(node.args):
                    waiting.append((arg, wide and size_at(arg.shape, -1) > 1))
            case "unsqueeze":
                thin = -1 in node.attr("axes")
                waiting.append((node.args[0], wide and not thin))
            case _:
                found.append((node, wide))
    return found


def _bare(expr: Expr) -> Expr:
    while expr.op in ("let", "stop", "unsqueeze"):
        expr = expr.args[0]
    return expr


def _plain(expr: Expr) -> str:
    """Write an expression without its sign."""
    while expr.op in ("neg", "let", "stop", "unsqueeze"):
        expr = expr.args[0]
    return show_expr(expr).lstrip("-")
