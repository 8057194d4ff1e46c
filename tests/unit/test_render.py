"""Faults as text, JSON and GitHub annotations."""

from __future__ import annotations

import pytest

from nlc.diagnostics import Diagnostic, Faults, Label
from nlc.render import render_github, render_json, render_text
from nlc.source import Source, Span

SPEC = """\
system hope

dims { d = 8 }



level beat   every 16 tokens
level phrase every 24 tokens
"""


def span(source: Source, words: str, nth: int = 0) -> Span:
    start = -1
    for _ in range(nth + 1):
        start = source.text.index(words, start + 1)
    return Span(source, start, start + len(words))


def nesting() -> Diagnostic:
    source = Source("specs/hope_small.nl", SPEC)
    faults = Faults()
    faults.error(
        "NL0203",
        "level `phrase` does not nest over `beat`",
        span(source, "24"),
        "24 is not a multiple of 16",
        "the period of a slower level must be a multiple of the faster one's: 16, 32, 48, ...",
        (span(source, "beat"), "`beat` updates every 16 tokens"),
    )
    return faults.found[0]


def one(text: str, words: str, label: str = "here", **options: object) -> str:
    source = Source("a.nl", text)
    diagnostic = Diagnostic(
        "NL0101", "wrong", (Label(span(source, words), label, True),), "mend it"
    )
    return render_text([diagnostic], color=False)


def test_two_places_and_a_hint() -> None:
    assert render_text([nesting()], color=False) == (
        """\
error[NL0203]: level `phrase` does not nest over `beat`
  --> specs/hope_small.nl:8:20
   |
 8 | level phrase every 24 tokens
   |                    ^^ 24 is not a multiple of 16
 7 | level beat   every 16 tokens
   |       ---- `beat` updates every 16 tokens
   |
   = hint: the period of a slower level must be a multiple of the faster one's: 16, 32, 48, ...
"""
    )


def test_two_labels_on_one_line_share_it() -> None:
    source = Source("a.nl", "x = y + z\n")
    labels = (Label(span(source, "z"), "is [b]"), Label(span(source, "y"), "is [a]", primary=True))
    text = render_text([Diagnostic("NL0401", "axes differ", labels, "reduce one")], color=False)
    assert text.splitlines()[3:6] == [
        " 1 | x = y + z",
        "   |     ^ is [a]",
        "   |         - is [b]",
    ]


def test_gutter_is_as_wide_as_the_largest_line_number() -> None:
    text = one("\n" * 99 + "wrong\n", "wrong")
    assert text.splitlines()[1:5] == [
        "    --> a.nl:100:1",
        "     |",
        " 100 | wrong",
        "     | ^^^^^ here",
    ]


def test_wide_and_combining_characters_keep_the_caret_in_place() -> None:
    lines = one("系统 = é + bad\n", "bad").splitlines()
    # 系统 takes four columns, e with a combining accent one
    assert lines[4] == "   | " + " " * 11 + "^^^ here"
    assert one("x = 系统\n", "系统").splitlines()[4] == "   |     ^^^^ here"


def test_tabs_are_shown_as_blanks() -> None:
    lines = one("\tx = bad\n", "bad").splitlines()
    assert lines[3] == " 1 |     x = bad"
    assert lines[4] == "   |         ^^^ here"


def test_a_span_of_many_lines_shows_its_ends() -> None:
    text = one(
        "block f(x) {\n  a = 1\n  b = 2\n}\nmodel { }\n", "block f(x) {\n  a = 1\n  b = 2\n}"
    )
    assert text.splitlines()[3:8] == [
        " 1 | block f(x) {",
        "   | ^^^^^^^^^^^^",
        "   ...",
        " 4 | }",
        "   | ^ here",
    ]


def test_a_span_of_two_lines() -> None:
    text = one("a = f(x,\n      y)\n", "f(x,\n      y)")
    assert text.splitlines()[3:7] == [
        " 1 | a = f(x,",
        "   |     ^^^^",
        " 2 |       y)",
        "   |       ^^ here",
    ]


def test_long_lines_are_clipped_around_the_place() -> None:
    lines = one("a" * 500 + " bad " + "b" * 500, "bad").splitlines()
    assert len(lines[3]) < 120 and "…" in lines[3]
    at = lines[4].index("^")
    assert lines[3][at : at + 3] == "bad"


def test_a_long_line_with_its_fault_at_the_start_is_shown_from_there() -> None:
    lines = one("bad" + "b" * 500, "bad").splitlines()
    assert lines[3].startswith(" 1 | badbbb") and lines[3].endswith("…")


def test_end_of_the_file_can_be_marked() -> None:
    source = Source("a.nl", "model {\n")
    at_end = Span(source, len(source.text), len(source.text))
    text = render_text(
        [Diagnostic("NL0101", "unfinished", (Label(at_end, "ends here", True),), "close it")], False
    )
    assert text.splitlines()[1:5] == ["  --> a.nl:2:1", "   |", " 2 |", "   | ^ ends here"]


def test_a_fault_without_a_place() -> None:
    text = render_text([Diagnostic("NL0180", "the file is empty", (), "write a spec")], color=False)
    assert text == "error[NL0180]: the file is empty\n   = hint: write a spec\n"


def test_a_label_in_another_file() -> None:
    here, there = Source("a.nl", "use b\n"), Source("b.nl", "rule r(x) { }\n")
    labels = (Label(span(here, "b"), "brings in `r`", True), Label(span(there, "r(x)"), "here"))
    text = render_text([Diagnostic("NL0301", "two `r`", labels, "rename one")], color=False)
    assert text.splitlines()[5:9] == [
        "  ::: b.nl:1:6",
        "   |",
        " 1 | rule r(x) { }",
        "   |      ---- here",
    ]


def test_control_characters_never_reach_the_terminal() -> None:
    source = Source("a\x1b.nl", "x = \x1b[31mbad \u202e\n")
    diagnostic = Diagnostic(
        "NL0101", "no \x1b", (Label(span(source, "bad"), "\x07", True),), "a\nb"
    )
    text = render_text([diagnostic], color=False)
    assert not any(c in text for c in "\x1b\x07\u202e")
    assert "hint: a\n           b" in text


def test_color_changes_nothing_but_color() -> None:
    import re

    colored = render_text([nesting()], color=True)
    assert "\x1b[1;31m" in colored
    assert re.sub("\x1b\\[[0-9;]*m", "", colored) == render_text([nesting()], color=False)


def test_json_counts_from_one_in_code_points() -> None:
    assert render_json("f.nl", [nesting()], levels=[1]) == {
        "file": "f.nl",
        "diagnostics": [
            {
                "code": "NL0203",
                "severity": "error",
                "title": "level `phrase` does not nest over `beat`",
                "labels": [
                    {
                        "primary": True,
                        "text": "24 is not a multiple of 16",
                        "start": {"line": 8, "column": 20},
                        "end": {"line": 8, "column": 22},
                    },
                    {
                        "primary": False,
                        "text": "`beat` updates every 16 tokens",
                        "start": {"line": 7, "column": 7},
                        "end": {"line": 7, "column": 11},
                    },
                ],
                "hint": "the period of a slower level must be a multiple of the faster one's: "
                "16, 32, 48, ...",
            }
        ],
        "levels": None,
        "stability": None,
        "cost": None,
    }


def test_json_of_a_good_spec_has_its_reports() -> None:
    warning = Diagnostic("NL0901", "memory never read", (), None, "warning")
    found = render_json("f.nl", [warning], levels=[1], stability={}, cost={"a": 1})
    assert (found["levels"], found["stability"], found["cost"]) == ([1], {}, {"a": 1})


def test_github_annotation_is_escaped() -> None:
    assert render_github("f.nl", [nesting()]) == (
        "::error file=specs/hope_small.nl,line=8,col=20,endLine=8,endColumn=22,"
        "title=NL0203 level `phrase` does not nest over `beat`::"
        "level `phrase` does not nest over `beat`: 24 is not a multiple of 16%0A"
        "hint: the period of a slower level must be a multiple of the faster one's: "
        "16, 32, 48, ...\n"
    )
    odd = Diagnostic("NL0180", "100% a,b:c", (), "h", "warning")
    assert render_github("f.nl", [odd]) == (
        "::warning file=f.nl,title=NL0180 100%25 a%2Cb%3Ac::100%25 a,b:c%0Ahint: h\n"
    )


@pytest.mark.parametrize("start", range(0, 14))
@pytest.mark.parametrize("length", [0, 1, 5, 14])
def test_no_place_breaks_the_renderer(start: int, length: int) -> None:
    text = "ab\n\n\tc系\r\n  d\n"
    source = Source("x", text)
    place = Span(source, min(start, len(text)), min(start + length, len(text)))
    out = render_text([Diagnostic("NL0101", "t", (Label(place, "w", True),), "h")], color=False)
    assert "^" in out and out.endswith("\n")
