"""Every fenced block of the README and the docs runs, and says what is true."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nlc
from nlc.cli import main
from nlc.lab.tasks import TASKS
from nlc.passes.plan import plan
from nlc.render import render_text
from tests.unit.docs.fences import ROOT, Fence, fences, pages, whole

ALL = [fence for page in pages() for fence in fences(page)]
SPECS = [f for f in ALL if f.kind in ("nl", "yaml")]
WITH_CODE = [page for page in pages() if {f.kind for f in fences(page)} & {"python", "console"}]


def test_every_fence_says_what_it_is() -> None:
    known = {"nl", "yaml", "python", "console", "text"}
    assert [str(f) for f in ALL if f.kind not in known] == []


@pytest.mark.parametrize("fence", SPECS, ids=str)
def test_a_spec_of_the_docs_is_as_it_says(fence: Fence) -> None:
    wanted = [word for word in fence.info.split() if word.startswith("NL")]
    try:
        system = nlc.parse(whole(fence), form=fence.kind)
        found = [d.code for d in nlc.check(system).diagnostics if d.code in wanted]
    except nlc.SpecError as error:
        found = [d.code for d in error.diagnostics]
        if not wanted:
            raise AssertionError(f"{fence}: {[(d.code, d.title) for d in error.diagnostics]}")
    assert sorted(set(found)) == sorted(wanted)


@pytest.fixture
def registered() -> Iterator[None]:
    """A page may register tasks; no other test is to see them."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_runs_from_top_to_bottom(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its commands and its Python, in order, in an empty folder with the files that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").symlink_to(ROOT / "specs")
    names: dict[str, object] = {}
    for fence in fences(page):
        title = re.match(r"# ([\w.-]+\.(?:nl|yaml))\n", fence.text)
        if fence.kind in ("nl", "yaml") and title:
            Path(title[1]).write_text(fence.text, "utf-8")
        if fence.kind == "python":
            exec(compile("\n" * (fence.line - 1) + fence.text, fence.page, "exec"), names)
        if fence.kind == "console":
            run_console(fence, monkeypatch, capsys)


def run_console(
    fence: Fence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the commands; each line shown below a command must be in what it prints."""
    for part in re.split(r"^\$ ", fence.text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            targets = (ROOT / "Makefile").read_text("utf-8")
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), f"{fence}: {command}"
            continue
        assert words[0] == "nlc", f"{fence}: {command}"
        printed = call(quick(words), monkeypatch, capsys)
        found = {" ".join(line.split()) for line in printed.splitlines()}
        lost = {" ".join(line.split()) for line in shown} - found - {"", "..."}
        assert not lost, f"{fence}: {command}: {lost} not in\n{printed}"


def quick(words: list[str]) -> list[str]:
    """Make training short, and nothing else different."""
    if words[1] == "train":
        kept = [w for i, w in enumerate(words) if "--minutes" not in words[max(i - 1, 0) : i + 1]]
        return [*kept, "--steps", "2", "--sample", "4", "--eval-bytes", "512", "--length", "32"]
    if words[1] in ("compare", "sweep") and not {"--plan", "--resume"} & set(words):
        return [*words, "--steps", "2", "--length", "32", "--lengths", "40"]
    if words[1] == "generate":
        return [*words, "--tokens", "8"]
    return words


def call(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run nlc in this process and return what it prints to either stream."""
    monkeypatch.setattr(sys, "argv", words)
    capsys.readouterr()
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, 1, None), capsys.readouterr().err
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_a_message_of_the_readme_is_what_its_spec_gives() -> None:
    """The lines of the spec stand in the message itself."""
    message = next(f.text for f in fences(ROOT / "README.md") if f.text.startswith("error["))
    lines = ["system hope", "", "dims { d = 8 }", "", "", ""]
    lines += re.findall(r"^ \d \| (.*)$", message, re.MULTILINE)[::-1]
    lines += ["block b(x[d]) -> y[d] { y = x }"]
    with pytest.raises(nlc.SpecError) as caught:
        nlc.parse("\n".join(lines) + "\n")
    shown = render_text(caught.value.diagnostics, color=False)
    assert shown.replace("<text>", "hope.nl") == message


def test_links_between_pages_lead_somewhere() -> None:
    lost = []
    for page in pages():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not (page.parent / target).exists():
                lost.append(f"{page.relative_to(ROOT)}: {target}")
    assert lost == []


def test_what_is_generated_is_as_it_would_be_now() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    wanted: dict[Path, str] = generate.generated()
    old = [p.name for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    assert old == [], "`make docs` writes these anew"


def test_the_readme_lists_every_shipped_system() -> None:
    listed = set(re.findall(r"specs/(\w+)\.nl", (ROOT / "README.md").read_text("utf-8")))
    assert {path.stem for path in (ROOT / "specs").glob("*.nl")} <= listed


def test_the_readme_says_how_each_system_runs() -> None:
    wrong = []
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\(specs/.*\| ([^|]+) \|$", text, re.MULTILINE)
    for name, said in rows:
        if name == "rules":
            continue
        runs = plan(nlc.load(ROOT / "specs" / f"{name}.nl")).blocks
        kinds = {schedule.kind for block in runs for schedule in block.schedules}
        if kinds != set(said.split(", ")):
            wrong.append((name, said, sorted(kinds)))
    assert len(rows) > 10
    assert wrong == []
