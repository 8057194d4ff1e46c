"""Every code has an entry, and every entry says what is so: its message stands in CODE.txt."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nlc.cli.explain import faults_of, shown_fault
from nlc.errors import catalogue, codes, entry

ROOT = Path(__file__).resolve().parents[2]
# what no text of a spec can give: a setting from outside, a file that cannot be read
OUTSIDE = {"NL0313", "NL0180", "NL0181", "NL0182", "NL0183", "NL0184", "NL0185"}


def recorded() -> set[str]:
    """The codes that the compiler can give."""
    sources = [p for p in (ROOT / "nlc").rglob("*.py") if "cli" not in p.parts]
    sources.append(ROOT / "grammar" / "syntax_errors.yaml")
    texts = "\n".join(path.read_text("utf-8") for path in sources)
    return set(re.findall(r"(?:\"|code: )(NL0\d{3})\b", texts))


def test_every_code_has_an_entry() -> None:
    missing = sorted(recorded() - set(codes()))
    assert not missing, f"nlc/catalogue/ lacks {', '.join(missing)}"


def test_every_entry_has_a_code() -> None:
    extra = sorted(set(codes()) - recorded())
    assert not extra, f"no stage gives {', '.join(extra)}"


@pytest.mark.parametrize("code", codes())
def test_the_wrong_spec_gives_the_code(code: str, golden: Callable[[str, str], None]) -> None:
    found = catalogue()[code]
    given = {d.code for d in faults_of(found.wrong, found.form)}
    assert given == (set() if code in OUTSIDE else {code})
    golden(f"../errors/{code}.txt", shown_fault(found, color=False))


@pytest.mark.parametrize("code", codes())
def test_the_mended_spec_is_clean(code: str) -> None:
    found = catalogue()[code]
    given = faults_of(found.right, found.form)
    assert not given, [f"{d.code}: {d.title}" for d in given]


def test_explain_shows_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    from nlc.cli.explain import explain

    explain(codes()[0].lower(), None)
    shown = capsys.readouterr().out
    found = entry(codes()[0])
    assert found is not None
    assert all(text in shown for text in (found.title, "Wrong:", "Right:", f"[{found.code}]"))
