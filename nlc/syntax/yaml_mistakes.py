"""What is wrong with a text that is no YAML, in the words of a spec.

In: an error of PyYAML. Out: one fault, with what people usually meant. Most of these come from an
expression that YAML reads as something else and that only needs quotes.
"""

from __future__ import annotations

import re

import yaml
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from nlc.diagnostics import Faults
from nlc.source import Source, Span

QUOTE = "put the whole expression in double quotes"
_ONE_VALUE = ("NL0151", "NL0152", "NL0159")
_CANNOT_START = re.compile(r"found character '(.+)' that cannot start")
_BEGINNINGS = {
    "while scanning a block scalar": "begins with `|` or `>`, which YAML reads as a block of text",
    "while scanning an alias": "begins with `*`, which YAML reads as an alias",
    "while scanning an anchor": "begins with `&`, which YAML reads as an anchor",
    "while scanning a tag": "begins with `!`, which YAML reads as a tag",
    "while parsing a tag": "begins with `!`, which YAML reads as a tag",
    "while scanning a directive": "begins with `%`, which YAML reads as a directive",
}


def report_yaml(wrong: yaml.YAMLError, source: Source, faults: Faults) -> int | None:
    """Record the fault that an error of PyYAML stands for.

    Returns its place if it concerns one value alone, without which the rest can be read.
    """
    if isinstance(wrong, ReaderError):
        place = min(int(wrong.position), max(len(source.text) - 1, 0))
        found = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd]", source.text)
        place = found.start() if found else place
        faults.error(
            "NL0102",
            "a control character in the text",
            Span(source, place, place + 1),
            f"the character U+{ord(source.text[place]):04X}",
            "delete it; a spec is plain text",
        )
        return None
    assert isinstance(wrong, MarkedYAMLError)
    problem, context = wrong.problem or "", wrong.context or ""
    mark = wrong.problem_mark or wrong.context_mark
    if context in _BEGINNINGS:
        mark = wrong.context_mark or mark
    place = mark.index if mark is not None else 0
    code, title, text, hint = _explained(problem, context, source, place)
    others = []
    if wrong.context_mark is not None and wrong.context_mark.index != place:
        begin = wrong.context_mark.index
        others.append((_one(source, begin), _context_words(context)))
    faults.error(code, title, _one(source, place), text, hint, *others)
    return place if code in _ONE_VALUE else None


_VALUE = re.compile(r"(\s*(?:- )*(?:[^\s#][^#\n]*?:\s+)?)(\S.*)")


def masked(text: str, place: int) -> tuple[str, tuple[int, int]] | None:
    """Return the text with the value on the line of `place` made harmless, and where it stood.

    So the rest of the text can be read after a fault. None where there is no value to mask.
    """
    begin = text.rfind("\n", 0, place) + 1
    end = text.find("\n", place)
    end = len(text) if end < 0 else end
    found = _VALUE.fullmatch(text[begin:end])
    if found is None or not found.group(2).strip("x"):
        return None
    start = begin + found.start(2)
    return text[:start] + "x" * (end - start) + text[end:], (start, end)


def _one(source: Source, place: int) -> Span:
    """Return one character; at the end of the text, the last that says something."""
    if place >= len(source.text):
        place = max(len(source.text.rstrip()) - 1, 0)
    return Span(source, place, min(place + 1, len(source.text)))


def _context_words(context: str) -> str:
    words = context.removeprefix("while scanning ").removeprefix("while parsing ")
    return f"{words} begins here"


def _explained(problem: str, context: str, source: Source, place: int) -> tuple[str, str, str, str]:
    """Return code, title, label and hint."""
    character = source.text[place : place + 1]
    if character == "\t" or "'\\t'" in problem:
        return (
            "NL0157",
            "a tab where YAML wants spaces",
            "a tab",
            "indent with spaces",
        )
    begins = _CANNOT_START.search(problem)
    if begins is not None:
        mark = begins.group(1)
        return (
            "NL0151",
            f"an expression that begins with `{mark}` needs quotes",
            "YAML gives this character a meaning of its own",
            QUOTE,
        )
    if context in _BEGINNINGS:
        return (
            "NL0151",
            f"an expression that {_BEGINNINGS[context]}, needs quotes",
            "not what YAML expects here",
            QUOTE,
        )
    if "mapping values are not allowed" in problem:
        above = source.text[: source.text.rfind("\n", 0, place) + 1].splitlines()[-1:]
        tight = re.match(r"\s*(\w+):(\S.*)", above[0]) if above else None
        if tight is not None:
            return (
                "NL0159",
                f"a space is missing after `{tight.group(1)}:` in the line above",
                "so YAML reads this as a second `:` of one text",
                f"write `{tight.group(1)}: {tight.group(2)}`",
            )
        return (
            "NL0159",
            "a second `:` in one line",
            "YAML reads this as the end of a key",
            f"{QUOTE}, or write the inner key on a line of its own",
        )
    if "flow" in context and "expected ',' or" in problem:
        if character in ("[", "{", '"', "'"):
            return (
                "NL0152",
                "an expression within `[ ]` or `{ }` holds a bracket",
                "YAML reads this as the begin of a list or mapping",
                f"{QUOTE}, or write each item on its own line, after `- `",
            )
        return (
            "NL0165",
            "a bracket of YAML is not closed",
            "expected a `,` or the closing bracket before this",
            "close it; an expression that begins with `[` or `{` needs quotes",
        )
    if "quoted scalar" in context:
        return (
            "NL0165",
            "a text in quotes is not closed",
            "the text ends before the quote does",
            "close the quotes",
        )
    if "block mapping" in context or "block collection" in context or "block sequence" in context:
        return (
            "NL0164",
            "the line does not fit the lines above it",
            "not a key at the same indentation",
            "give keys of one mapping the same indentation, and put an expression that begins with "
            "a quote or bracket in quotes as a whole",
        )
    if "could not find expected ':'" in problem:
        return (
            "NL0164",
            "a key without `:`",
            "a `:` is expected before this",
            "write `key: value`, or `- ` before an item of a list",
        )
    return (
        "NL0150",
        f"this is not YAML: {problem or 'it cannot be read'}",
        "here",
        "check the brackets, quotes and indentation around this place",
    )
