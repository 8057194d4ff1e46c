"""The catalogue of codes: what each fault means, with a wrong spec and the mended one.

In: a code, or a misspelt word. Out: an `Entry`, or the nearest known word. The texts lie in
`nlc/catalogue/*.yaml` and are read when first asked for. Raises `InternalError` where the
compiler itself is at fault; what is wrong in a spec is a `Diagnostic`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files


class InternalError(Exception):
    """A bug of the compiler, never a fault of the spec; keeps its traceback."""

    def __init__(self, what: str):
        super().__init__(
            f"this is a bug of nlc, not of your spec: {what}. "
            "Please report it together with the spec and this traceback."
        )

    @staticmethod
    def named(error: Exception) -> InternalError:
        """Return the error itself, or say of another one that it should not have come here."""
        if isinstance(error, InternalError):
            return error
        return InternalError(f"{type(error).__name__} where none can be ({error})")


@dataclass(frozen=True)
class Entry:
    """What is known of a code: `wrong` is a whole spec that gives it, `right` the mended one."""

    code: str
    title: str
    cause: str
    wrong: str
    right: str

    @property
    def form(self) -> str:
        """The form of the two specs: `nl` or `yaml`."""
        return form_of(self.wrong)


def form_of(text: str) -> str:
    """Return `yaml` for a text that is in the YAML form, else `nl`."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return "yaml" if first.startswith("system:") else "nl"


@cache
def catalogue() -> dict[str, Entry]:
    """Read all entries, in the order of their codes."""
    import yaml

    entries: dict[str, Entry] = {}
    for file in sorted(files("nlc").joinpath("catalogue").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".yaml"):
            continue
        loaded = yaml.load(file.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for code, fields in (loaded or {}).items():
            if code in entries:
                raise InternalError(f"{code} is twice in the catalogue, again in {file.name}")
            entries[code] = Entry(code, *(fields[k] for k in ("title", "cause", "wrong", "right")))
    return dict(sorted(entries.items()))


def codes() -> tuple[str, ...]:
    """Return all codes of the catalogue, in order."""
    return tuple(catalogue())


def entry(code: str) -> Entry | None:
    """Return the entry of a code, however its letters are cased, or None.

    >>> entry("nl9999") is None
    True
    """
    return catalogue().get(code.strip().upper())


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `word` was probably meant to be, or None.

    >>> nearest("momentun", ["momentum", "decay"])
    'momentum'
    >>> nearest("x", ["momentum", "decay"]) is None
    True

    Of those that are alike in order, the one with the same letters: two of them were exchanged.

    >>> nearest("sdg", ["dgd", "sgd"])
    'sgd'
    """
    best: tuple[tuple[float, float], str] | None = None
    for candidate in sorted(set(candidates)):
        matcher = SequenceMatcher(None, word.lower(), candidate.lower(), autojunk=False)
        if matcher.quick_ratio() < 0.6:
            continue
        likeness = (matcher.ratio(), matcher.quick_ratio())
        if likeness[0] >= 0.6 and (best is None or likeness > best[0]):
            best = (likeness, candidate)
    return best[1] if best else None
