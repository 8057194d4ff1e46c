"""How wide a text is drawn, and texts cut or broken to a width.

In: texts. Out: widths, shorter texts. Fonts differ from reader to reader, so a width is that of a
wide common font (DejaVu Sans), and a text that fits here fits in the others.
"""

from __future__ import annotations

import unicodedata

# letters by their width in hundredths of the font's size
_BY_WIDTH = {
    28: "'ijl",
    32: " ,.IJ·",
    36: "-/:;\\|f",
    40: "()[]t!r",
    47: '"',
    52: "*_`sz?",
    57: "cLFk",
    60: "vxyPT",
    64: "YaoeESbdghnpqu$0123456789{}–",
    69: "AVBRXZKC",
    78: "UHNDGOQ&",
    84: "#+<=>^~×∞→w",
    92: "Mm%",
    101: "W@…—",
}
_LETTERS = {letter: wide / 100 for wide, letters in _BY_WIDTH.items() for letter in letters}
# bold letters are wider by up to this
BOLD = 1.14
# Chinese, Japanese and Korean letters are square, pictures a little wider
SQUARE, PICTURE = 1.0, 1.3


def width(text: str, size: float, bold: bool = False) -> float:
    """Estimate how wide a text is drawn; never less than it is.

    >>> width("W_q", 10) < width("W_q", 10, bold=True) < width("記憶器", 10)
    True
    """
    return size * sum(
        _latin(c) * (BOLD if bold else 1) if _is_latin(c) else _other(c) for c in text
    )


def _is_latin(char: str) -> bool:
    return char < "\u3000" and unicodedata.east_asian_width(char) not in "WF"


def _latin(char: str) -> float:
    if char in _LETTERS:
        return _LETTERS[char]
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0.0
    base = unicodedata.normalize("NFD", char)[0]
    if base in _LETTERS:
        return _LETTERS[base]
    return (
        0.8 if char.isupper() else 0.68 if unicodedata.name(char, "").startswith("GREEK") else 0.95
    )


def _other(char: str) -> float:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0.0
    return PICTURE if unicodedata.category(char) == "So" or char > "\U0001f000" else SQUARE


def columns(text: str) -> int:
    """Count the columns of a terminal that a text takes.

    >>> columns("W_q"), columns("記憶")
    (3, 4)
    """
    total = 0
    for char in text:
        if unicodedata.category(char) in ("Mn", "Me", "Cf"):
            continue
        total += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return total


def padded(text: str, wanted: int) -> str:
    """Fill a text with blanks up to a number of columns."""
    return text + " " * max(0, wanted - columns(text))


def fit(text: str, size: float, room: float, bold: bool = False) -> str:
    """Cut a text that is wider than its room, with an ellipsis.

    >>> fit("a long name indeed", 10, 60)
    'a long na…'
    """
    if width(text, size, bold) <= room:
        return text
    while text and width(text + "…", size, bold) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, size: float, room: float, lines: int, bold: bool = False) -> list[str]:
    """Break a text into lines at blanks, or within a word that has none; cut the last one."""
    found: list[str] = []
    rest = text.strip()
    while rest and len(found) < lines - 1 and width(rest, size, bold) > room:
        end = len(rest)
        while end > 1 and width(rest[:end], size, bold) > room:
            end -= 1
        end = _good_end(rest, end)
        found.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*found, fit(rest, size, room, bold)] if rest else found


def _good_end(text: str, end: int) -> int:
    """Move the end of a line back to a blank, or behind what no line should begin with."""
    blank = text.rfind(" ", 0, end + 1)
    if blank > end // 2:
        return blank
    for place in range(end, end // 2, -1):
        starts, ends = text[place : place + 1], text[place - 1]
        if unicodedata.category(starts or " ")[:2] in ("Pe", "Pf", "Po"):
            continue
        if ends in "_-./" or unicodedata.east_asian_width(ends) in "WF":
            return place
    return end
