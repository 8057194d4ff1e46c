"""What the commands share: options, how a spec is found, what is said of a wrong call.

In: words of the command line. Out: paths, settings, exits. Reads no spec.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from nlc.errors import nearest

FORMS = (".nl", ".yaml", ".yml")
# characters of a file's name that a message repeats
SHOWN = 256


class CallError(Exception):
    """The call is wrong: `what`, and in `hint` what would be accepted."""

    def __init__(self, what: str, hint: str):
        super().__init__(what)
        self.what = what
        self.hint = hint


class Format(StrEnum):
    """How faults are shown."""

    text = "text"
    json = "json"
    github = "github"


SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A spec file (.nl or .yaml), or a shipped one by its name."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a value in the spec, such as `dims.d=128` or `levels.fast.chunk=1`.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How errors are shown.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")]


def shipped() -> dict[str, Path]:
    """Return the specs of the library, by name, in order."""
    folder = Path(str(files("nlc.specs")))
    found = (path for path in folder.iterdir() if path.suffix in FORMS)
    return {path.stem: path for path in sorted(found)}


def find_spec(word: str) -> Path:
    """Return the file that a SPEC argument means: a path, else a shipped spec's name."""
    path = Path(word)
    if is_file(path):
        return path
    library = shipped()
    if word in library:
        return library[word]
    if not word.strip():
        raise CallError("the name of a spec is empty", "a file, or a name that `nlc specs` lists")
    if len(word) > SHOWN:
        raise CallError(
            f"there is no file {word[:SHOWN]}...", f"a name of less than {SHOWN} characters"
        )
    if path.is_dir():
        raise CallError(f"{word} is a folder", "a spec file in it")
    if path.exists():
        raise CallError(f"{word} is not a regular file", "a file that ends with .nl or .yaml")
    if path.suffix in FORMS or "/" in word or "\\" in word:
        raise CallError(
            f"there is no file {word}", "the path of a spec, or a name that `nlc specs` lists"
        )
    close = nearest(word, library)
    raise CallError(
        f"there is no spec `{word}`",
        f"did you mean `{close}`?"
        if close
        else "a file, or a name that `nlc specs` lists; `nlc new NAME` writes a first one",
    )


def is_file(path: Path) -> bool:
    """Say whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def settings(words: list[str] | None) -> dict[str, str]:
    """Read `--set path=value` options; what the values mean is the spec's affair.

    >>> settings(["dims.d=128", "levels.slow.optimizer = sgd(lr = 0.1)"])
    {'dims.d': '128', 'levels.slow.optimizer': 'sgd(lr = 0.1)'}
    """
    found: dict[str, str] = {}
    for word in words or []:
        path, equals, value = (part.strip() for part in word.partition("="))
        missing = "value" if path or not value else "path"
        if not equals or not path or not value:
            raise CallError(
                f"--set {word} has no {missing}", "--set PATH=VALUE, such as dims.d=128"
            )
        if path in found:
            raise CallError(f"--set {path} is given twice", "one value")
        found[path] = value
    return found


def write_file(path: Path, text: str) -> None:
    """Write a text file, or say why not."""
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise CallError(f"cannot write {path}: {error.strerror}", "a place to write to") from None


def say(text: str = "", error: bool = False) -> None:
    """Print a line (or lines, with their end)."""
    print(text, end="" if text.endswith("\n") else "\n", file=sys.stderr if error else sys.stdout)


def say_call_error(what: str, hint: str) -> None:
    """Print what is wrong with a call."""
    from nlc.render import printable

    say(f"nlc: {printable(what, keep=chr(10))}", error=True)
    say(f"   = hint: {printable(hint)}", error=True)


def colored(stream: object) -> bool:
    """Say whether to color what goes to a stream: a terminal that does not refuse it."""
    import os

    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"
