"""Questions about syntax trees: which names they use, and trees put in the place of names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nlc.source import Span
from nlc.syntax import tree


def mentions(expr: tree.Node, names: set[str]) -> bool:
    """Say whether a syntax tree uses one of the names."""
    stack: list[Any] = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, tree.Name) and node.id in names:
            return True
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, tree.Node):
            stack.extend(vars(node).values())
    return False


def calls(expr: tree.Node) -> set[str]:
    """Return the names of the functions that a syntax tree calls."""
    found: set[str] = set()
    stack: list[Any] = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, tree.Call):
            found.add(node.function.id if isinstance(node.function, tree.Name) else "")
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, tree.Node):
            stack.extend(vars(node).values())
    return found


def at_place(node: Any, span: Span) -> Any:
    """Give a tree that was not written a place."""
    if isinstance(node, tuple):
        return tuple(at_place(item, span) for item in node)
    if isinstance(node, tree.Node):
        inner = {
            key: at_place(value, span)
            for key, value in vars(node).items()
            if isinstance(value, tuple | tree.Node)
        }
        return replace(node, **inner, span=span)
    return node


def substitute(node: Any, names: dict[str, tree.Expr]) -> Any:
    """Put trees in the place of names, for showing a rule's equations with its arguments."""
    if isinstance(node, tree.Name):
        return names.get(node.id, node)
    if isinstance(node, tuple):
        return tuple(substitute(item, names) for item in node)
    if isinstance(node, tree.Node) and not isinstance(node, tree.Target):
        changed = {
            key: substitute(value, names)
            for key, value in vars(node).items()
            if isinstance(value, tuple | tree.Node) and key != "comments"
        }
        return replace(node, **changed)
    return node


def tidied(node: Any) -> Any:
    """Leave out what adds 0 or multiplies by 1 or 0, as a rule's defaults do when it is shown."""
    if isinstance(node, tuple):
        return tuple(tidied(item) for item in node)
    if not isinstance(node, tree.Node) or isinstance(node, tree.Target):
        return node
    changed = {
        key: tidied(value)
        for key, value in vars(node).items()
        if isinstance(value, tuple | tree.Node) and key != "comments"
    }
    node = replace(node, **changed)
    match node:
        case tree.Binary(operator="*", left=left, right=right):
            for one, other in ((left, right), (right, left)):
                if _number(one) in (0, 1):
                    return other if _number(one) == 1 else one
        case tree.Binary(operator="+", left=left, right=right) if _number(left) == 0:
            return right
        case tree.Binary(operator="+" | "-", left=left, right=right) if _number(right) == 0:
            return left
    return node


def _number(node: tree.Node) -> int | float | None:
    return node.value if isinstance(node, tree.Number) else None
