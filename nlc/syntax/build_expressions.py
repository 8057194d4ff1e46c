"""From parse trees to the expressions of the syntax tree.

In: Lark trees of the expression rules. Out: `tree.Expr`, `Map`, `Target`, `Parameter`, `Period`,
with spans. Checks what the grammar leaves open (the order and names of keywords) and the limits on
numbers and on depth. Works from the leaves up, so no text can exhaust the stack.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lark import Token, Tree
from lark.tree import Meta

from nlc.diagnostics import Faults
from nlc.source import Span
from nlc.syntax import tree as t
from nlc.syntax.limits import MAX_DEPTH, MAX_NUMBER
from nlc.syntax.passage import Passage

Children = list[Any]
PLURAL = {"token": "tokens", "tokens": "tokens", "step": "steps", "steps": "steps"}


def canonical(name: str) -> str:
    """Return one spelling for names that look alike: the micro sign is the Greek mu."""
    return unicodedata.normalize("NFKC", name) if not name.isascii() else str(name)


class ExpressionBuilder:
    """Builds one passage; a method per rule of the grammar, which gets the built children."""

    def __init__(self, passage: Passage, faults: Faults):
        self.passage = passage
        self.faults = faults
        self._depths: dict[int, int] = {}
        self._deep_lines: set[int] = set()
        self._kept: list[t.Expr] = []  # keeps the ids in _depths alive

    def build(self, root: Tree[Token]) -> Any:
        """Build a parse tree from the leaves up, without recursion."""
        order: list[Any] = []
        waiting: list[Any] = [root]
        while waiting:
            item = waiting.pop()
            order.append(item)
            if isinstance(item, Tree):
                waiting.extend(item.children)
        built: list[Any] = []
        for item in reversed(order):
            if isinstance(item, Tree):
                count = len(item.children)
                children = built[len(built) - count :]
                del built[len(built) - count :]
                method: Callable[[Meta, Children], Any] = getattr(self, f"on_{item.data}")
                built.append(method(item.meta, children))
            else:
                built.append(item)
        (result,) = built
        return result

    # ---- places --------------------------------------------------------------------------------

    def at(self, meta: Meta) -> Span:
        """Return the span of a tree."""
        return self.passage.span(meta.start_pos, meta.end_pos)

    def at_token(self, token: Token) -> Span:
        """Return the span of a token."""
        assert token.start_pos is not None and token.end_pos is not None
        return self.passage.span(token.start_pos, token.end_pos)

    # ---- leaves --------------------------------------------------------------------------------

    def on_name(self, meta: Meta, children: Children) -> t.Name:
        return t.Name(canonical(children[0]), span=self.at(meta))

    def on_number(self, meta: Meta, children: Children) -> t.Number:
        text = str(children[0])
        span = self.at(meta)
        if len(text) > MAX_NUMBER:
            self.faults.error(
                "NL0190",
                f"a number of {len(text)} characters",
                span,
                f"longer than {MAX_NUMBER} characters",
                "write fewer digits, or use an exponent: 1.5e-8",
            )
            return t.Number("0", span=span)
        if math.isinf(float(text)):
            self.faults.error(
                "NL0191",
                f"the number {text} is too large",
                span,
                "beyond what a 64-bit float can hold",
                "write a number below 1.8e308",
            )
            return t.Number("0", span=span)
        return t.Number(text, span=span)

    # ---- expressions ---------------------------------------------------------------------------

    def _bounded(self, node: t.Expr, *parts: t.Expr) -> t.Expr:
        """Return the node, or a stand-in where the tree of it would be too deep."""
        depth = 1 + max((self._depths.get(id(part), 1) for part in parts), default=0)
        if depth > MAX_DEPTH:
            self._too_deep(node)
            node, depth = t.Number("0", span=node.span), 1
        self._depths[id(node)] = depth
        self._kept.append(node)
        return node

    def _too_deep(self, node: t.Expr) -> None:
        """Record that an expression is too deep, once for each line."""
        begin = self.passage.source.text.rfind("\n", 0, node.span.start)
        if begin not in self._deep_lines:
            self._deep_lines.add(begin)
            self.faults.error(
                "NL0189",
                "the expression is too deep",
                node.span,
                f"more than {MAX_DEPTH} operations within one another",
                "give parts of it names of their own, on lines above",
            )

    def on_parentheses(self, meta: Meta, children: Children) -> t.Expr:
        # the place takes the parentheses in, so that messages repeat both or none
        (inner,) = children
        node: t.Expr = replace(inner, span=self.at(meta))
        self._depths[id(node)] = self._depths.get(id(inner), 1)
        self._kept.append(node)
        return node

    def on_attribute(self, meta: Meta, children: Children) -> tuple[str, Span, str]:
        return "attribute", self.at(meta), canonical(children[0])

    def on_call(self, meta: Meta, children: Children) -> tuple[str, Span, Children]:
        return "call", self.at(meta), children

    def on_keyword(self, meta: Meta, children: Children) -> t.Keyword:
        return t.Keyword(canonical(children[0]), children[1], span=self.at(meta))

    def on_applied(self, meta: Meta, children: Children) -> t.Expr:
        node, *trailers = children
        for kind, span, content in trailers:
            whole = node.span.to(span)
            if kind == "attribute":
                node = self._bounded(t.Attribute(node, content, span=whole), node)
            else:
                plain, keywords = self.arguments(content)
                parts = [*plain, *(k.value for k in keywords)]
                node = self._bounded(t.Call(node, plain, keywords, span=whole), node, *parts)
        return node  # type: ignore[no-any-return]

    def arguments(
        self, children: Sequence[Any], words: bool = False
    ) -> tuple[Any, tuple[t.Keyword, ...]]:
        """Split arguments into plain ones and keywords; check their order and names.

        `words`: in a map, bare words such as `bias` may follow settings.
        """
        plain: list[Any] = []
        keywords: dict[str, t.Keyword] = {}
        for child in children:
            if not isinstance(child, t.Keyword):
                if keywords and not words:
                    last = list(keywords.values())[-1]
                    self.faults.error(
                        "NL0129",
                        "an argument without a name follows one with a name",
                        child.span,
                        "has no name",
                        "write the arguments without a name first",
                        (last.span, f"`{last.name}` has one"),
                    )
                plain.append(child)
            elif child.name in keywords:
                self.faults.error(
                    "NL0130",
                    f"`{child.name}` is given twice",
                    child.span,
                    "again here",
                    "keep one of the two",
                    (keywords[child.name].span, "first here"),
                )
            else:
                keywords[child.name] = child
        return tuple(plain), tuple(keywords.values())

    def on_powers(self, meta: Meta, children: Children) -> t.Expr:
        base, *exponents = children
        operands = [([], base), *exponents]
        node = operands[-1][1]
        for index in range(len(operands) - 1, 0, -1):
            node = self._signed(operands[index][0], node)
            left = operands[index - 1][1]
            node = self._bounded(
                t.Binary("^", left, node, span=left.span.to(node.span)), left, node
            )
        return node  # type: ignore[no-any-return]

    def on_exponent(self, meta: Meta, children: Children) -> tuple[Children, t.Expr]:
        return children[:-1], children[-1]

    def on_signs(self, meta: Meta, children: Children) -> t.Expr:
        return self._signed(children[:-1], children[-1])

    def _signed(self, signs: Sequence[Token], node: t.Expr) -> t.Expr:
        for sign in reversed(signs):
            span = self.at_token(sign).to(node.span)
            node = self._bounded(t.Unary(str(sign), node, span=span), node)
        return node

    def on_product(self, meta: Meta, children: Children) -> t.Expr:
        node: t.Expr = children[0]
        for operator, right in zip(children[1::2], children[2::2], strict=True):
            span = node.span.to(right.span)
            node = self._bounded(t.Binary(str(operator), node, right, span=span), node, right)
        return node

    on_sum = on_product

    def on_compare(self, meta: Meta, children: Children) -> t.Expr:
        left, operator, right = children
        return self._bounded(t.Compare(str(operator), left, right, span=self.at(meta)), left, right)

    def on_tuple(self, meta: Meta, children: Children) -> t.Expr:
        return self._bounded(t.Tuple(tuple(children), span=self.at(meta)), *children)

    def on_norm(self, meta: Meta, children: Children) -> t.Expr:
        return self._bounded(t.Norm(children[1], span=self.at(meta)), children[1])

    def on_inner(self, meta: Meta, children: Children) -> t.Expr:
        _, left, right, _ = children
        return self._bounded(t.Inner(left, right, span=self.at(meta)), left, right)

    # ---- maps, shapes, periods -----------------------------------------------------------------

    def on_chain(self, meta: Meta, children: Children) -> t.Chain:
        return t.Chain(tuple(children), span=self.at(meta))

    def on_map(self, meta: Meta, children: Children) -> t.Map:
        kind = children[0]
        if kind.type == "LIKE":
            name = t.Name(canonical(children[1]), span=self.at_token(children[1]))
            return t.Map("like", (t.Chain((name,), span=name.span),), span=self.at(meta))
        plain, keywords = self.arguments(children[1:], words=True)
        return t.Map(canonical(kind), plain, keywords, span=self.at(meta))

    def on_shape(self, meta: Meta, children: Children) -> tuple[t.Expr, ...]:
        return tuple(children)

    def on_target(self, meta: Meta, children: Children) -> t.Target:
        shape = children[-1] if isinstance(children[-1], tuple) else None
        path = tuple(canonical(c) for c in children if isinstance(c, Token))
        return t.Target(path, shape, span=self.at(meta))

    on_output = on_target

    def on_parameter(self, meta: Meta, children: Children) -> t.Parameter:
        shape: tuple[t.Expr, ...] | None = None
        default: t.Expr | None = None
        for child in children[1:]:
            if isinstance(child, tuple):
                shape = child
            else:
                default = child
        return t.Parameter(canonical(children[0]), shape, default, span=self.at(meta))

    def on_unit(self, meta: Meta, children: Children) -> str:
        return PLURAL[str(children[0])]

    def on_every(self, meta: Meta, children: Children) -> t.Period:
        count, unit = children
        return t.Period(unit, count, span=self.at(meta))

    on_period = on_every

    def on_always(self, meta: Meta, children: Children) -> t.Period:
        return t.Period("always", span=self.at(meta))

    def on_never(self, meta: Meta, children: Children) -> t.Period:
        return t.Period("never", span=self.at(meta))

    def on_from(self, meta: Meta, children: Children) -> t.From:
        return t.From(canonical(children[0]), span=self.at(meta))
