"""Lines of Python as ruff formats them: indentation, and what to do with a line that is too long.

In: statements and comments, one at a time. Out: text whose lines have at most 100 columns.
Splits calls at their outermost brackets only; whoever writes gives names to parts of an expression
that would not fit otherwise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

WIDTH = 100


@dataclass
class Writer:
    """Collects lines at a depth of indentation."""

    lines: list[str] = field(default_factory=list)
    depth: int = 0
    said: str = ""
    # where the last branch ended: its line, its depth and its condition
    under: tuple[int, int, str] = (-1, 0, "")

    @property
    def room(self) -> int:
        """Columns left for a statement at this depth."""
        return WIDTH - 4 * self.depth

    @contextmanager
    def indent(self) -> Iterator[None]:
        """Write what follows one step to the right."""
        self.depth += 1
        yield
        self.depth -= 1

    def line(self, text: str = "") -> None:
        """Write one line as it is."""
        self.lines.append("    " * self.depth + text if text else "")

    def blank(self, count: int = 1) -> None:
        """Leave lines empty."""
        self.lines.extend([""] * count)

    def comment(self, text: str) -> None:
        """Write a comment, over several lines if it is long."""
        for part in textwrap.wrap(text, self.room - 2, break_long_words=True) or [""]:
            self.line(f"# {part}".rstrip())

    def docstring(self, paragraphs: Sequence[str]) -> None:
        """Write a docstring; the first line stands alone, the others are kept as they are."""
        first, *rest = (escape(text) for text in paragraphs)
        if not rest and len(first) + 6 <= self.room:
            self.line(f'"""{first}"""')
            return
        head, *more = textwrap.wrap(first, self.room - 6) or [""]
        self.line(f'"""{head}')
        for text in more:
            self.line(text)
        if rest:
            self.line()
        for text in rest:
            # indentation inside a paragraph is the author's
            inner = len(text) - len(text.lstrip())
            for part in textwrap.wrap(
                text, self.room, subsequent_indent=" " * (inner + 4), drop_whitespace=True
            ) or [""]:
                self.line(part.rstrip())
        self.line('"""')

    def returns(self, texts: Sequence[str]) -> None:
        """Write `return a, b`, one entry a line where it is long."""
        line = f"return {', '.join(texts)}"
        if len(line) <= self.room or len(texts) == 1:
            self.line(line)
            return
        for text in ("return (", *(f"    {text}," for text in texts), ")"):
            self.line(text)

    def call(self, head: str, arguments: Sequence[str], tail: str = ")") -> None:
        """Write `head(arguments)`; `head` ends with the opening bracket."""
        for text in split_call(head, arguments, tail, self.room):
            self.line(text)

    def text(self) -> str:
        """Return everything written."""
        return "\n".join(self.lines) + "\n"


def split_call(head: str, arguments: Sequence[str], tail: str, room: int) -> list[str]:
    """Lay out a call: on one line, its arguments on a line of their own, or one a line.

    >>> split_call("f(", ["a", "b"], ")", 80)
    ['f(a, b)']
    >>> split_call("f(", ["aaaa", "bbbb"], ")", 11)
    ['f(', '    aaaa,', '    bbbb,', ')']
    """
    inside = ", ".join(arguments)
    if len(head) + len(inside) + len(tail) <= room or not arguments:
        return [head + inside + tail]
    if 4 + len(inside) <= room:
        return [head, "    " + inside, *_split_type(tail, room)]
    lines = [head]
    for argument in arguments:
        whole = f"    {argument},"
        opens = argument.startswith("[") and argument.endswith("]") and len(whole) > room
        items = split_items(argument[1:-1]) if opens else []
        lines += ["    [", *(f"        {item}," for item in items), "    ],"] if items else [whole]
    return [*lines, *_split_type(tail, room)]


def _split_type(tail: str, room: int) -> list[str]:
    """Lay out `) -> tuple[...]:`, the types on a line of their own where they are long."""
    if len(tail) <= room:
        return [tail]
    head, _, inside = tail.removesuffix("]:").partition("[")
    if 4 + len(inside) <= room:
        return [f"{head}[", f"    {inside}", "]:"]
    return [f"{head}[", *(f"    {kind}," for kind in split_items(inside)), "]:"]


def split_items(text: str) -> list[str]:
    """Split a list at its outermost commas.

    >>> split_items("a, f(b, (4,)), c[d, e]")
    ['a', 'f(b, (4,))', 'c[d, e]']
    """
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items]


def split_names(head: str, names: Sequence[str], tail: str, room: int) -> list[str]:
    """Lay out a tuple of names: on one line, or one name a line."""
    text = head + ", ".join(names) + tail
    return [text] if len(text) <= room else [head, *(f"    {name}," for name in names), tail]


def fits(head: str, arguments: Sequence[str], tail: str, room: int) -> bool:
    """Say whether a laid-out call keeps within the room."""
    return all(len(text) <= room for text in split_call(head, arguments, tail, room))


def escape(text: str) -> str:
    """Make a text safe inside triple quotes."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
