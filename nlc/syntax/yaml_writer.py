"""YAML text from entries: what needs quotes, where lines break, where comments stand.

In: entries of mappings and lists. Out: lines. Writes the block style, and short mappings and lists
on one line. Knows nothing of the language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nlc.syntax.rows import NO_COMMENTS, WIDTH, comment, comment_lines
from nlc.syntax.tree import BLANK, Comments

_LONGEST_KEY = 800  # YAML allows 1024 characters before the `:` of a plain key
# words that YAML, or an editor's schema, reads as something other than a text
_WORDS = {"", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<", "=", "---"}
_NEEDS_QUOTES = re.compile(
    r"^[-?:](?:\s|$)|^[,\[\]{}#&*!|>'\"%@`\s]|^(?:---|\.\.\.)|:(?:\s|$)|\s#|\s$|[\n\t\x85\u2028\u2029\ufeff]"
)
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


@dataclass(frozen=True)
class Entry:
    """A field of a mapping, or an item of a list where `key` is None.

    It has a text, children below it (items where they have no keys), or, being an item, `fields`.
    """

    key: str | None
    text: str | None = None
    comments: Comments = NO_COMMENTS
    children: Sequence[Entry] | None = None
    fields: Sequence[Entry] = ()
    is_list: bool = False  # what is written where there are no children: `[]` or `{}`


def render(entries: Sequence[Entry], indent: int) -> list[str]:
    """Return entries as lines, `indent` spaces deep."""
    lines: list[str] = []
    for index, entry in enumerate(entries):
        lines.extend(_entry(entry, indent, first=index == 0))
    return lines


def _entry(entry: Entry, indent: int, first: bool) -> list[str]:
    space = " " * indent
    lines = comment_lines(entry.comments.above, space, strip=True)
    if entry.comments.above[:1] == (BLANK,) and not first:
        lines.insert(0, "")
    behind = entry.comments.behind
    if entry.fields:
        return [*lines, *_item_of_fields(entry, indent)]
    if entry.key is None:
        return [*lines, _with_comment(f"{space}- {entry.text}", behind)]
    key = scalar(entry.key)
    head = f"{space}{key}:"
    if len(key) > _LONGEST_KEY:
        lines.append(f"{space}? {key}")
        head = f"{space}:"
    if entry.children:
        lines.append(_with_comment(head, behind))
        lines.extend(render(entry.children, indent + 2))
    else:
        text = entry.text
        if text is None:
            text = "[]" if entry.is_list else "{}"
        lines.append(_with_comment(f"{head} {text}", behind))
    lines.extend(comment_lines(entry.comments.inside, space + "  ", strip=not entry.children))
    return lines


def _item_of_fields(entry: Entry, indent: int) -> list[str]:
    """Return an item that is a mapping: `- when: e` with `do:` below it."""
    behind = Comments(behind=entry.comments.behind)
    first, *rest = entry.fields
    fields = [Entry(first.key, first.text, behind, first.children, is_list=first.is_list), *rest]
    lines = render(fields, indent + 2)
    lines[0] = f"{' ' * indent}- {lines[0][indent + 2 :]}"
    inside = comment_lines(entry.comments.inside, " " * (indent + 4))
    return [*lines, *inside]


def _with_comment(line: str, behind: str | None) -> str:
    return line if behind is None else f"{line}  {comment(behind)}"


# ---- scalars and one-line collections ----------------------------------------------------------


def scalar(text: str, flow: bool = False) -> str:
    """Return a text as YAML reads it back, in double quotes where it has to be.

    >>> scalar("k1, k2"), scalar("||e||^2"), scalar("a[d]", flow=True)
    ('k1, k2', '"||e||^2"', '"a[d]"')
    """
    plain = not _NEEDS_QUOTES.search(text) and text.lower() not in _WORDS
    if plain and not (flow and re.search(r"[,\[\]{}]|^[-?:]", text)):
        return text
    return '"' + "".join(_ESCAPES.get(char) or _escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if char in "\x85\u2028\u2029\ufeff" else char


def flow_list(texts: Sequence[str], used: int) -> str | None:
    """Return `[a, b]`, or None where it does not fit behind `used` characters."""
    line = f"[{', '.join(scalar(text, flow=True) for text in texts)}]"
    return line if used + len(line) <= WIDTH else None


def flow_mapping(pairs: Sequence[tuple[str, str]], used: int) -> str | None:
    """Return `{a: 1, b: 2}`, or None where it does not fit behind `used` characters."""
    fields = [f"{scalar(k, flow=True)}: {scalar(v, flow=True)}" for k, v in pairs]
    line = f"{{{', '.join(fields)}}}"
    return line if used + len(line) <= WIDTH else None
