"""Faults of used specs and of the library stand in the spec that is read; settings reach both."""

from __future__ import annotations

from pathlib import Path

import pytest

import nlc
from nlc.diagnostics import Diagnostic
from nlc.render import render_json

PART = """system part
dims {{ d = 4 }}
level now always
level fast every 1 token
level slow every 1 step
block mixer(x[d]) -> out[d] {{
  weights W : linear(d -> d)
  memory A : kernel(softmax) at now {{
    key   x
    value x
  }}
  memory M : linear(d -> d) at fast {{
    key   x
    value x
    {update}
  }}
  out = {out} + A(x)
}}
"""
MAIN = "# a comment\nsystem main\nuse part\nmodel {\n vocab 5\n x[d] = embed(tokens)\n"
MAIN += " logits = unembed(x + mixer(x))\n}\n"


def write(folder: Path, update: str = "update sgd(lr = 0.1)", out: str = "W(M(x))") -> Path:
    (folder / "part.nl").write_text(PART.format(update=update, out=out))
    (folder / "main.nl").write_text(MAIN)
    return folder / "main.nl"


def places(file: Path, found: tuple[Diagnostic, ...]) -> list[tuple[int, str]]:
    """Line and text of every label, as JSON has them."""
    shown = render_json(str(file), found)["diagnostics"]
    assert isinstance(shown, list)
    return [(x["start"]["line"], x["text"]) for d in shown for x in d["labels"]]


def test_an_error_of_a_used_spec_stands_on_the_use_line(tmp_path: Path) -> None:
    file = write(tmp_path, out="W(M(y))")
    with pytest.raises(nlc.SpecError) as caught:
        nlc.load(file)
    assert places(file, caught.value.diagnostics) == [(3, "part.nl:17: nothing has this name")]


def test_a_warning_of_a_used_spec_stands_on_the_use_line(tmp_path: Path) -> None:
    file = write(tmp_path, out="W(x)")
    found = nlc.check(nlc.load(file)).diagnostics
    assert found and all(line == 3 for line, _ in places(file, found))
    assert all(text.startswith("part.nl:") for _, text in places(file, found))


def test_what_cannot_be_compiled_in_a_used_spec_stands_on_the_use_line(tmp_path: Path) -> None:
    objective = "objective 1/2 * ||A(self(key)) - value||^2"
    system = nlc.load(write(tmp_path, update=f"{objective}\n    update sgd(lr = 0.1)"))
    with pytest.raises(nlc.SpecError) as caught:
        nlc.compile(system)
    (found,) = places(tmp_path / "main.nl", caught.value.diagnostics)
    assert found[0] == 3 and found[1].startswith("part.nl:15:")


def test_a_place_in_the_library_is_named_where_the_fault_is(tmp_path: Path) -> None:
    file = tmp_path / "a.nl"
    file.write_text(PART.format(update="update sgd(rate = 0.1)", out="W(M(x))"))
    with pytest.raises(nlc.SpecError) as caught:
        nlc.load(file)
    assert places(file, caught.value.diagnostics) == [
        (15, "nothing has this name"),
        (15, "rules.nl:6: the rule"),
    ]


def test_a_title_repeats_whole_parentheses(tmp_path: Path) -> None:
    file = tmp_path / "a.nl"
    file.write_text("dims { d = 2, e = 3 }\nblock f(x[d], y[e]) -> z[d] {\n  z = x * (y + y)\n}\n")
    with pytest.raises(nlc.SpecError) as caught:
        nlc.load(file)
    assert "`x * (y + y)`" in caught.value.diagnostics[0].title


def test_a_package_says_what_was_changed_from_outside(tmp_path: Path) -> None:
    file = write(tmp_path)
    changed = nlc.compile(nlc.load(file, set={"dims.d": 8}))
    assert "Changed from outside: dims.d = 8" in changed.source.split('"""')[1]
    assert "Changed from outside" not in nlc.compile(nlc.load(file)).source
