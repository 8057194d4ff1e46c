"""Texts in quotes.

In: a text as it is meant, or as it is written. Out: the other of the two. Only the sentence about
a system is written so.
"""

from __future__ import annotations

ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


def unquote(written: str) -> str:
    """Return what a text in quotes says; a backslash before any other letter is itself."""
    text, result, index = written[1:-1], [], 0
    while index < len(text):
        if text[index] == "\\" and index + 1 < len(text) and text[index + 1] in ESCAPES:
            result.append(ESCAPES[text[index + 1]])
            index += 2
        else:
            result.append(text[index])
            index += 1
    return "".join(result)


def quote(text: str) -> str:
    """Return a text in quotes, from which `unquote` gives it back.

    >>> unquote(quote("a quote"))
    'a quote'
    """
    result = []
    for index, char in enumerate(text):
        following = text[index + 1 : index + 2]
        if char == '"' or (char == "\\" and following in '"\\nt\n\t'):
            result.append("\\" + char)
        elif char in "\n\t":
            result.append({"\n": "\\n", "\t": "\\t"}[char])
        else:
            result.append(char)
    return '"' + "".join(result) + '"'
