"""What the equations of a memory with slots say about which parts are in use. Data only.

In: expressions. Out: the choice that an update hangs on, reads that are summed over the slots, and
values that are zero for parts that a token does not select.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Shape
from nlc.ir.system import Memory

# operations whose result is zero where their argument is
LINEAR = ("neg", "let", "stop", "unsqueeze", "reshape", "permute", "transpose", "mul", "outer")


@dataclass(frozen=True)
class Choice:
    """An update runs for parts of which `condition` is not zero: at most `count` of `size`.

    `selected` of these are selected by one token, by the weights `route`.
    """

    condition: Expr
    route: Expr
    selected: int
    count: int
    size: int

    @property
    def sparse(self) -> bool:
        """Say whether it pays to take the selected parts out."""
        return 2 * self.selected <= self.size

    @property
    def sparse_update(self) -> bool:
        """Say whether it pays to take out the parts that an update moves."""
        return 2 * self.count <= self.size


def selected(route: Expr) -> int:
    """Count the parts that a token selects at most.

    Weights sum to 1, so at most 1/t of them are t or more; the largest n of N sum to n/N or more.
    """
    size, amount = route.shape[-1].size, float(route.attr("amount"))
    match route.attr("select"):
        case "top_k":
            return int(amount)
        case "top_p":
            return min(size, int(amount * size * (1 + 1e-6)) + 1)
        case "threshold" if amount * size > 1:
            return min(size, int((1 + 1e-6) / amount))
        case _:
            return size


def choice(memory: Memory) -> Choice | None:
    """Find on what the update of a memory with slots hangs; None where it has none."""
    conditions = {_condition(memory, a.var, a.part, a.value) for a in memory.update}
    conditions.discard(None)
    if len(conditions) != 1:
        return None
    (condition,) = conditions
    assert condition is not None
    inner = condition.args[0] if condition.op == "window" else condition
    if inner.op != "gt" or inner.args[0].op != "route":
        return None
    route = inner.args[0]
    if not memory.lead or route.shape[-1].name != memory.lead[-1].name:
        return None
    size, number = route.shape[-1].size, selected(route)
    return Choice(condition, route, number, min(size, number * memory.window), size)


def _condition(memory: Memory, var: str, part: str, value: Expr) -> Expr | None:
    if value.op != "where" or not is_state(value.args[2], memory.name):
        return None
    old = value.args[2]
    if (old.attr("var"), old.attr("part"), old.attr("when")) != (var, part, "prev"):
        return None
    condition = value.args[0]
    while condition.op == "unsqueeze":
        (condition,) = condition.args
    return condition if condition.op in ("gt", "window") else None


def is_state(node: Expr, memory: str) -> bool:
    """Say whether a node is a running state of a memory, or that of its chunk's start."""
    own = node.op == "state" and node.attr("memory") == memory
    return own and node.attr("when") != "initial"


def routed(node: Expr) -> tuple[Expr, Expr] | None:
    """Split the read of a memory with slots, sum of w_i M_i(x): the weights, and the read."""
    if node.op != "sum" or (node.has("keep") and node.attr("keep")) or node.args[0].op != "mul":
        return None
    for weights, read in (node.args[0].args, node.args[0].args[::-1]):
        while weights.op == "unsqueeze":
            (weights,) = weights.args
        applied = read.op == "apply" and len(read.args) > 1 and read.args[1].op == "state"
        if weights.op != "route" or not applied:
            continue
        place = int(read.attr("lead")) - 1 - len(read.shape)
        if tuple(node.attr("axes")) == (place,) and read.shape[place].name == (
            weights.shape[-1].name
        ):
            return weights, read
    return None


def further(read: Expr) -> int:
    """Count the axes of a query besides the leading ones and the map's inputs."""
    return len(read.args[0].shape) - int(read.attr("lead")) - len(read.attr("map").inputs)


def sparse_read(node: Expr, memory_of: Callable[[str], Memory]) -> Memory | None:
    """Return the memory that a node reads with the selected parts alone, or None."""
    found = routed(node)
    if found is None or found[1].args[1].attr("when") == "initial":
        return None
    memory = memory_of(str(found[1].args[1].attr("memory")))
    hangs = choice(memory)
    return memory if hangs is not None and hangs.sparse else None


def vanishes(x: Expr, route: Expr) -> bool:
    """Say whether a value is zero for every part to which a route gives no weight."""
    found: dict[Expr, bool] = {}
    for node in postorder([x]):
        args = [found[arg] for arg in node.args]
        match node.op:
            case "route":
                found[node] = node is route
            case "gt":
                found[node] = args[0] and _is_zero(node.args[1])
            case "where":
                found[node] = args[2] and (args[0] or args[1])
            case "add" | "sub":
                found[node] = all(args)
            case "div":
                found[node] = args[0]
            case op if op in LINEAR:
                found[node] = any(args)
            case _:
                found[node] = _is_zero(node)
    return found[x]


def _is_zero(node: Expr) -> bool:
    return node.op == "const" and node.attr("value") == 0.0


def leading(shape: Shape, lead: Shape) -> tuple[bool, ...]:
    """Say which leading axes a value in the body of a memory has, in its own or as size 1."""
    found: list[bool] = []
    place = 0
    for i, axis in enumerate(lead):
        here = place < len(shape) and shape[place].name == axis.name
        if not here and place < len(shape) and shape[place].size == 1:
            # stands in for the axis if a later one follows
            later = {other.name for other in lead[i + 1 :]}
            here = any(other.name in later for other in shape[place + 1 :])
        found.append(here)
        place += here
    return tuple(found)


def own(memory: Memory, roots: list[Expr]) -> set[Expr]:
    """Find the values that hang on the memory's own states."""
    return hanging(roots, lambda node: is_state(node, memory.name))


def hanging(roots: list[Expr], leaf: Callable[[Expr], bool]) -> set[Expr]:
    """Find the values that hang on some leaves; a total over tokens is there for all parts."""
    found: set[Expr] = set()
    for node in postorder(roots):
        if node.op == "window":
            continue
        if leaf(node) or any(arg in found for arg in node.args):
            found.add(node)
    return found
