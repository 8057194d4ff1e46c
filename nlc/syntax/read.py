"""From a file or a text, in either form, to the syntax tree.

In: a path, or a text and its form (`nl` or `yaml`). Out: `tree.Spec`; or `SpecError`, also for a
file that cannot be read. The only place of this package that opens files.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from nlc.diagnostics import Faults, SpecError
from nlc.errors import nearest
from nlc.source import Source
from nlc.syntax import tree as t
from nlc.syntax.limits import MAX_BYTES

FORMS = {".nl": "nl", ".yaml": "yaml", ".yml": "yaml"}


def read(path: str | Path) -> t.Spec:
    """Read and parse a spec; its suffix says which form it has."""
    return parse_source(*read_source(path))


def parse(text: str, form: str = "nl", name: str = "<text>") -> t.Spec:
    """Parse a text; `name` is what messages call it."""
    return parse_source(Source(name, plain(text)), form)


def parse_source(source: Source, form: str) -> t.Spec:
    """Parse a source in the form `nl` or `yaml`."""
    _check_size(source.name, len(source.text.encode("utf-8", "surrogatepass")))
    _check_not_empty(source, ("{}", "---", "...") if form == "yaml" else ())
    if form == "yaml":
        from nlc.syntax.parse_yaml import parse_yaml

        return parse_yaml(source)
    if form == "nl":
        from nlc.syntax.parse_text import parse_text

        return parse_text(source)
    raise ValueError(f"the form is `nl` or `yaml`, not {form!r}")


def read_source(path: str | Path) -> tuple[Source, str]:
    """Read a file; return its text and its form."""
    path = Path(path)
    name = path.as_posix()
    form = FORMS.get(path.suffix.lower())
    data = _bytes(path, name)
    if form is None:
        _refuse(
            "NL0185",
            f"{name}: neither .nl nor .yaml",
            "name the file NAME.nl for the text form, NAME.yaml for the YAML form",
        )
    if b"\0" in data:
        _refuse("NL0183", f"{name} is a binary file", "a spec is a text in UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        _refuse(
            "NL0182",
            f"{name} is not UTF-8: byte {data[wrong.start]:#04x} in line {line}",
            "save the file as UTF-8",
        )
    return Source(name, plain(text)), form


def plain(text: str) -> str:
    """Return a text with plain line ends and without a byte order mark."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _bytes(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            _refuse("NL0181", f"{name} is a folder", "name a file in it, as in `FOLDER/NAME.nl`")
        if path.exists() and not path.is_file():
            _refuse("NL0181", f"{name} is not a regular file", "name a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        _refuse("NL0180", f"there is no file {name}", _other_file(path))
    except (OSError, ValueError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
        _refuse("NL0181", f"{name} cannot be read: {reason}", "check its name and permissions")
    _check_size(name, len(data))
    return data


def _other_file(path: Path) -> str:
    """Return a hint: the file of the nearest name in the same folder."""
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix.lower() in FORMS]
    except OSError:
        return f"there is no folder {path.parent.as_posix()}"
    meant = nearest(path.name, names)
    if meant is not None:
        return f"did you mean {(path.parent / meant).as_posix()}?"
    return "check the name, or the folder you are in"


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        _refuse(
            "NL0184",
            f"{name} is larger than 1 MB",
            "split it: `use NAME` brings in the rules and blocks of another spec",
        )


def _check_not_empty(source: Source, nothing: tuple[str, ...]) -> None:
    lines = (line.strip() for line in source.text.splitlines())
    if all(line in ("", *nothing) or line.startswith("#") for line in lines):
        _refuse(
            "NL0186",
            f"{source.name} has no clauses",
            "begin with `system NAME` and a `block` or `model`; `nlc new` writes one",
        )


def _refuse(code: str, title: str, hint: str) -> NoReturn:
    faults = Faults()
    faults.error(code, title, None, "", hint)
    raise SpecError(faults.found)
