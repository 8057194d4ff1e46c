"""Programs as readable Python: named statements, each with the equation it came from above it.

In: a `Program`, the names of its inputs, a `Writer`. Out: the statements of the function's body;
what is used once stands inside its user, and what would not fit the line gets a name of its own.
Records which functions of the library the text calls. Does not change the program.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from nlc.codegen.names import Names
from nlc.codegen.program import Branch, Loop, Operand, Program, choose
from nlc.codegen.writer import WIDTH, Writer, split_call
from torch import fx

ATOM, CALL, UNARY, PRODUCT, SUM, EITHER, COMPARE, CHOICE = 18, 17, 14, 13, 12, 8, 6, 1

INFIX: dict[Callable[..., Any], tuple[str, int]] = {
    operator.add: ("+", SUM), operator.sub: ("-", SUM),
    operator.mul: ("*", PRODUCT), operator.truediv: ("/", PRODUCT),
    operator.matmul: ("@", PRODUCT), operator.mod: ("%", PRODUCT),
    operator.lt: ("<", COMPARE), operator.le: ("<=", COMPARE), operator.gt: (">", COMPARE),
    operator.ge: (">=", COMPARE), operator.eq: ("==", COMPARE), operator.ne: ("!=", COMPARE),
    operator.or_: ("|", EITHER),
}  # fmt: skip

# names for values that the spec gives none
TEMPORARY: dict[object, str] = {
    operator.add: "total", operator.sub: "difference", operator.mul: "product",
    operator.truediv: "quotient", operator.matmul: "product", operator.neg: "negative",
}  # fmt: skip


def qualified(function: Callable[..., Any]) -> str:
    """Return how a torch function is written: `torch.exp`, `F.silu`, `torch.linalg.solve`."""
    name = function.__name__
    for prefix, module, word in (
        ("torch", torch, name),
        ("F", F, name),
        ("torch.linalg", torch.linalg, name.removeprefix("linalg_")),
    ):
        if getattr(module, word, None) is function:
            return f"{prefix}.{word}"
    return name


def _uses(node: fx.Node) -> int:
    """Count the places at which a node is used; `x * x` uses x twice.

    What is returned counts once: two states that begin equal are two tensors.
    """
    count = 0

    def seen(used: fx.Node) -> fx.Node:
        nonlocal count
        count += used is node
        return used

    for user in node.users:
        if user.op == "output":
            count += 1
        else:
            fx.map_arg((user.args, user.kwargs), seen)
    return count


def is_library(function: object) -> bool:
    """Say whether a function is copied into the emitted file."""
    return str(getattr(function, "__module__", "")).startswith("nlc.codegen.library")


def default_name(node: fx.Node) -> str:
    """Name a value by what made it."""
    return TEMPORARY.get(node.target) or "value"


@dataclass
class Printer:
    """Prints one program; `used` collects the library's functions it calls."""

    program: Program
    writer: Writer
    names: Names
    used: set[str]
    bound: dict[fx.Node, str] = field(default_factory=dict)
    holders: dict[str, fx.Node] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    _place: dict[fx.Node, int] = field(default_factory=dict)
    # texts of nodes as they are now; a new name changes those of what uses it
    _texts: dict[fx.Node, tuple[str, int]] = field(default_factory=dict)

    def run(self) -> None:
        """Print all statements, without the return."""
        nodes = list(self.program.graph.nodes)
        self._place = {node: i for i, node in enumerate(nodes)}
        for node in nodes:
            if node.op in ("placeholder", "output"):
                continue
            if node in self.bound and "results" not in node.meta:
                continue
            if self.stands_alone(node):
                self.statement(node)

    def bind(self, node: fx.Node, name: str) -> None:
        """Say that a node is known under a name."""
        self.bound[node] = name
        self.holders[name] = node
        self._texts.clear()

    # ---- which nodes are statements ------------------------------------------------------------

    def stands_alone(self, node: fx.Node) -> bool:
        """Say whether a node is printed as a statement of its own."""
        if "results" in node.meta:
            return True
        if node.op == "get_attr" or self._is_part(node) or node.target is builtins.getattr:
            return False
        if "name" in node.meta or "above" in node.meta:
            return True
        return _uses(node) > 1 and not self._is_short(node)

    def _is_short(self, node: fx.Node) -> bool:
        """Say whether a value may be written out wherever it is used: sizes, entries of states."""
        if node.target in (operator.getitem, operator.add, operator.mod, operator.eq):
            return "shape" not in node.meta
        return node.target is operator.getitem

    def _is_part(self, node: fx.Node) -> bool:
        return (
            node.target is operator.getitem
            and isinstance(node.args[0], fx.Node)
            and "results" in node.args[0].meta
        )

    def _site(self, node: fx.Node) -> int:
        """Where a node's text stands, by place in the graph."""
        while True:
            if node.op == "output" or node in self.bound or self.stands_alone(node):
                return self._place.get(node, 0)
            if len(node.users) != 1:
                return max((self._site(u) for u in node.users), default=self._place[node])
            node = next(iter(node.users))

    def _last_use(self, node: fx.Node) -> int:
        return max((self._site(user) for user in node.users), default=-1)

    def done(self, node: fx.Node, at: fx.Node) -> bool:
        """Say whether a value is no longer needed after another's statement."""
        return self._last_use(node) <= self._place[at]

    def take(self, wanted: str, node: fx.Node, owner: fx.Node, before: bool = False) -> str:
        """Name a node; a name whose value is no longer needed is used again.

        `before` says that the node is printed before its owner, which may need other values still.
        """
        from nlc.codegen.names import identifier

        base = identifier(wanted)
        holder = self.holders.get(base)
        limit = self._place[owner] - (1 if before else 0)
        free = holder is not None and self._last_use(holder) <= limit
        name = base if free and base not in self.pinned else self.names.fresh(wanted)
        self.bind(node, name)
        return name

    # ---- statements ----------------------------------------------------------------------------

    def statement(self, node: fx.Node) -> None:
        """Print a node as `name = expression`."""
        for text in node.meta.get("above", ()):
            # equations written on one line have it above the first
            if text != self.writer.said:
                self.writer.comment(text)
                self.writer.said = text
        if isinstance(node.target, Loop):
            from nlc.codegen.print_loop import print_loop

            print_loop(self, node, node.target)
            return
        if isinstance(node.target, Branch):
            from nlc.codegen.print_loop import print_branch

            print_branch(self, node, node.target)
            return
        if getattr(node.target, "__name__", "") == "passes":
            from nlc.codegen.print_loop import print_passes

            print_passes(self, node, node.target)
            return
        self.fit(node)
        body = self.expression(node)[0]
        if "results" in node.meta:
            head = self._targets(node)
        else:
            head = self.take(str(node.meta.get("name", self._temporary(node))), node, node)
        # the text was made before the name was taken, so it still says the old values
        self.write(head, node, body)

    def _targets(self, node: fx.Node) -> str:
        parts = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        found = []
        for i, wanted in enumerate(node.meta["results"]):
            part = parts.get(i)
            found.append("_" if part is None else self.take(str(wanted), part, node))
        return ", ".join(found)

    def write(self, head: str, node: fx.Node, body: str) -> None:
        """Write `head = body`, split at the call's brackets if it is too long."""
        line = f"{head} = {body}"
        if len(line) <= self.writer.room:
            self.writer.line(line)
            return
        if not self._splittable(node):
            self.writer.line(line)
            return
        start, arguments = self._pieces(node)
        for text in split_call(f"{head} = {start}(", arguments, ")", self.writer.room):
            self.writer.line(text)

    def fit(self, node: fx.Node) -> None:
        """Give names to parts of an expression until its statement fits."""
        wanted = self._temporary(node) if "results" not in node.meta else ""
        head = max(len(wanted) + 3, sum(len(str(r)) + 4 for r in node.meta.get("results", ())))
        while True:
            room = self.writer.room - head - 3
            text, _ = self.expression(node)
            if len(text) <= room:
                return
            if node.op.startswith("call") and self._splittable(node):
                start, arguments = self._pieces(node)
                lines = split_call(f"{start}(", arguments, ")", self.writer.room)
                if len(start) + 1 <= room and all(len(x) <= self.writer.room for x in lines):
                    return
            part = self._longest(node, room)
            if part is None:
                return
            name = self._temporary(part)
            self.fit(part)
            body = self.expression(part)[0]
            self.write(self.take(name, part, node, before=True), part, body)

    def _splits(self, node: fx.Node) -> bool:
        """Say whether a call fits when its arguments stand on lines of their own."""
        if not node.op.startswith("call") or not self._splittable(node):
            return False
        start, arguments = self._pieces(node)
        lines = split_call(f"{start}(", arguments, ")", self.writer.room)
        return all(len(line) <= self.writer.room for line in lines) and len(start) < WIDTH // 2

    def _longest(self, node: fx.Node, room: int) -> fx.Node | None:
        best: tuple[int, fx.Node] | None = None
        for part in self._inside(node):
            size = len(self.expression(part)[0])
            fits = size <= max(room, WIDTH // 2) or self._splits(part)
            if size > 8 and fits and (best is None or size > best[0]):
                best = (size, part)
        return best[1] if best else None

    def _inside(self, node: fx.Node) -> Iterator[fx.Node]:
        for argument in node.all_input_nodes:
            if argument in self.bound or argument.op in ("get_attr", "placeholder"):
                continue
            if argument.target is not builtins.getattr and not self._is_part(argument):
                yield argument
            yield from self._inside(argument)

    def _temporary(self, node: fx.Node) -> str:
        if "name" in node.meta:
            return str(node.meta["name"])
        if getattr(node.target, "__name__", "") == "wide" and isinstance(node.args[0], fx.Node):
            # the same value, more precisely
            return self.bound.get(node.args[0], "value")
        if node.target is operator.getitem and isinstance(node.args[1], str):
            key = node.args[1]
            return f"{self.operand(node.args[0])}_{key}" if key.isdigit() else key
        return default_name(node)

    def settle(self, value: Operand, room: int, wanted: str = "result") -> None:
        """Give a value a name where its text is too long to stand where it is used."""
        if not isinstance(value, fx.Node) or value in self.bound:
            return
        if len(self.expression(value)[0]) > room:
            self.fit(value)
            body, name = self.expression(value)[0], self.names.fresh(wanted)
            self.write(name, value, body)
            self.bind(value, name)

    # ---- expressions ---------------------------------------------------------------------------

    def operand(self, value: Operand, least: int = 0) -> str:
        """Print an argument, in parentheses if it binds less than `least`."""
        text, precedence = self.expression(value)
        return f"({text})" if precedence < least else text

    def expression(self, value: Operand) -> tuple[str, int]:
        """Return an expression's text and how strongly it binds."""
        match value:
            case fx.Node():
                if value not in self._texts:
                    self._texts[value] = self._node(value)
                return self._texts[value]
            case bool() | None | str():
                return (f'"{value}"' if isinstance(value, str) else repr(value)), ATOM
            case int() | float():
                text = repr(value) if math.isfinite(value) else f'float("{value}")'
                return text, UNARY if text.startswith("-") else ATOM
            case tuple():
                inside = ", ".join(self.operand(v) for v in value)
                return f"({inside},)" if len(value) == 1 else f"({inside})", ATOM
            case list():
                return "[" + ", ".join(self.operand(v) for v in value) + "]", ATOM
            case dict():
                pairs = (f'"{k}": {self.operand(v)}' for k, v in value.items())
                return "{" + ", ".join(pairs) + "}", ATOM
            case slice():
                ends = ("" if e is None else self.operand(e) for e in (value.start, value.stop))
                return ":".join(ends), ATOM
            case EllipsisType():
                return "...", ATOM
            case torch.dtype():
                return str(value), CALL
            case type() if is_library(value):
                self.used.add(value.__name__)
                return value.__name__, ATOM
        raise AssertionError(f"no text for {value!r}")

    def _node(self, node: fx.Node) -> tuple[str, int]:
        if node in self.bound:
            return self.bound[node], ATOM
        if node.op == "placeholder":
            raise AssertionError(f"the input {node.name} has no name")
        if node.op == "get_attr":
            return f"self.{node.target}", CALL
        target = node.target
        if node.op == "call_function" and callable(target):
            if target in INFIX:
                sign, strength = INFIX[target]
                left, right = node.args
                text = f"{self.operand(left, strength)} {sign} {self.operand(right, strength + 1)}"
                return text, strength
            if target is operator.neg:
                return f"-{self.operand(node.args[0], UNARY)}", UNARY
            if target is builtins.getattr:
                return f"{self.operand(node.args[0], CALL)}.{node.args[1]}", CALL
            if target is operator.getitem:
                return self._subscript(node), CALL
            if target is choose:
                condition, yes, no = (self.operand(a, CHOICE + 1) for a in node.args)
                return f"{yes} if {condition} else {no}", CHOICE
        start, arguments = self._pieces(node)
        return f"{start}({', '.join(arguments)})", CALL

    def _subscript(self, node: fx.Node) -> str:
        base, place = node.args
        places = place if isinstance(place, tuple) else (place,)
        return f"{self.operand(base, CALL)}[{', '.join(self.operand(p) for p in places)}]"

    def _splittable(self, node: fx.Node) -> bool:
        special = (operator.neg, builtins.getattr, operator.getitem, choose)
        return node.target not in INFIX and node.target not in special

    def _pieces(self, node: fx.Node) -> tuple[str, list[str]]:
        """What stands before a call's brackets, and the arguments between them."""
        arguments: tuple[Any, ...] = node.args
        if getattr(node.target, "__name__", "") == "call_module":
            start, arguments = self.operand(arguments[0], CALL), arguments[1:]
        elif node.op == "call_method":
            start = f"{self.operand(arguments[0], CALL)}.{node.target}"
            arguments = arguments[1:]
        elif node.op == "call_module":
            start = f"self.{node.target}"
        else:
            function: Any = node.target
            if is_library(function):
                self.used.add(function.__name__)
            start = qualified(function)
        words = [f"{key}={self.operand(value)}" for key, value in node.kwargs.items()]
        return start, [*(self.operand(a) for a in arguments), *words]
