"""Bad and hostile input: each limit has its code, and nothing takes long or ends in a traceback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlc.diagnostics import SpecError
from nlc.syntax.limits import MAX_DEPTH
from nlc.syntax.read import parse, read

BLOCK = "block f(x) -> y {{\n  y = {}\n}}\n"
LEVELS = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 10))
BOMB = f"system: a\nx0: &x0 [{', '.join('1' * 10)}]\n{LEVELS}"


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 30


def codes(text: str, form: str = "nl") -> list[str]:
    try:
        parse(text, form)
    except SpecError as error:
        return [fault.code for fault in error.diagnostics]
    return []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BLOCK.format("(" * 101 + "x" + ")" * 101), "NL0187"),
        (BLOCK.format("(" * 400_000), "NL0187"),
        (BLOCK.format("||" * 400_000), "NL0187"),
        (BLOCK.format("<" * 400_000), "NL0187"),
        ("model { " + "repeat 1 { " * 80_000, "NL0187"),
        (BLOCK.format("a" * 65), "NL0188"),
        (BLOCK.format("a" * 900_000), "NL0188"),
        (BLOCK.format("+".join("1" * (MAX_DEPTH + 1))), "NL0189"),
        (BLOCK.format("+".join("1" * 400_000)), "NL0189"),
        (BLOCK.format("^".join("2" * 400_000)), "NL0189"),
        (BLOCK.format("-" * 900_000 + "1"), "NL0189"),
        (BLOCK.format("x" + ".a" * 400_000), "NL0189"),
        (BLOCK.format("x" + "()" * 400_000), "NL0189"),
        ("dims { a = " + "1" * 65 + " }", "NL0190"),
        ("dims { a = 1e999 }", "NL0191"),
        ("x" * 1_000_001, "NL0184"),
        ("", "NL0186"),
        ("# nothing\n\n", "NL0186"),
        ("level a never\n\0", "NL0102"),
        ("level a never # \a", "NL0102"),
        ('system a "' + "x" * 900_000, "NL0103"),
        (")" * 900_000, "NL0106"),
        ("$" * 900_000, "NL0102"),
    ],
    ids=lambda value: value[:24] if len(value) > 30 else value,
)
def test_text(text: str, code: str) -> None:
    assert set(codes(text)) == {code}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: " + "[" * 400_000, "NL0187"),
        ("".join(" " * i + "a:\n" for i in range(300)), "NL0187"),
        ("- " * 300_000, "NL0187"),
        ("system: a\nx: &x 1\ny: [" + ",".join(["*x"] * 1001) + "]\n", "NL0192"),
        (BOMB, "NL0193"),
        ("dims: &a {d: *a}\n", "NL0194"),
        ("dims: {" + "d" * 65 + ": 1}", "NL0188"),
        ("dims: {d: " + "1" * 65 + "}", "NL0190"),
        ('dims: {d: "' + "+".join("1" * 100_000) + '"}', "NL0189"),
        ("", "NL0186"),
        ("{}\n", "NL0186"),
        ("system: \0", "NL0102"),
        ('system: a\nabout: "\\a"', "NL0102"),
    ],
    ids=lambda value: value[:24] if len(value) > 30 else value,
)
def test_yaml(text: str, code: str) -> None:
    assert set(codes(text, "yaml")) == {code}


def test_what_is_just_within_the_limits_is_fine() -> None:
    assert codes(BLOCK.format("(" * 100 + "x" + ")" * 100)) == []
    assert codes(BLOCK.format("+".join("1" * MAX_DEPTH))) == []
    assert codes(BLOCK.format("a" * 64)) == []
    shared = ", ".join(["*r"] * 1000)
    names = "dims: {a: &r 1, " + "".join(f"b{i}: *r, " for i in range(999)) + "}"
    assert shared and codes(names, "yaml") == []


def test_reading_stops_after_twenty_errors() -> None:
    assert codes("y y\n" * 1000) == ["NL0118"] * 20
    equations = "".join(f"      - y{i} = *\n" for i in range(100))
    wrong = f"blocks:\n  f(x) -> y:\n    equations:\n{equations}"
    assert codes(wrong, "yaml") == ["NL0141"] * 20
    assert len(codes("dims: {a: @x}\n" * 100, "yaml")) == 20


def test_a_long_list_of_dims_is_fine() -> None:
    dims = ", ".join(f"d{i} = {i}" for i in range(5000))
    assert codes(f"dims {{ {dims} }}") == []


# ---- files -------------------------------------------------------------------------------------


def file_fault(path: Path) -> tuple[str, str, str | None]:
    with pytest.raises(SpecError) as caught:
        read(path)
    (fault,) = caught.value.diagnostics
    assert fault.labels == ()
    return fault.code, fault.title, fault.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "titans.nl").write_text("level a never\n")
    code, title, hint = file_fault(tmp_path / "titan.nl")
    assert code == "NL0180" and "titan.nl" in title and hint and "titans.nl" in hint
    assert file_fault(tmp_path / "no" / "a.nl")[0] == "NL0180"
    assert file_fault(tmp_path)[0] == "NL0181"
    assert file_fault(Path("a\0b.nl"))[0] == "NL0181"
    (tmp_path / "a.nl").write_bytes(b"level a\xff never")
    code, title, _ = file_fault(tmp_path / "a.nl")
    assert code == "NL0182" and "0xff in line 1" in title
    (tmp_path / "b.nl").write_bytes(b"\x7fELF\0\0\0")
    assert file_fault(tmp_path / "b.nl")[0] == "NL0183"
    (tmp_path / "c.yaml").write_bytes(b"#" * 1_000_001)
    assert file_fault(tmp_path / "c.yaml")[0] == "NL0184"
    (tmp_path / "d.txt").write_text("level a never\n")
    assert file_fault(tmp_path / "d.txt")[0] == "NL0185"
    (tmp_path / "e.nl").write_text("\n")
    assert file_fault(tmp_path / "e.nl")[0] == "NL0186"


def test_a_file_of_any_system_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.nl").write_bytes("\ufeffsystem a\r\nlevel θ never\r\n".encode())
    assert read(tmp_path / "a.nl").levels[0].name == "θ"
    (tmp_path / "b.YML").write_text("system: a\n")
    assert read(tmp_path / "b.YML").name == "a"


def test_reading_opens_no_other_file_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("system: !!python/object/apply:os.system [exit]\n")
    assert file_codes(tmp_path / "a.yaml") == ["NL0160", "NL0155"]


def file_codes(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(path)
    return [fault.code for fault in caught.value.diagnostics]
