"""A fault of a spec as data.

In: code, words and spans. Out: `Diagnostic`, and `SpecError`, which carries all those of a stage.
Does not decide what is wrong, the stages do; and does not show it, `nlc.render` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from nlc.source import Span

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Label:
    """A place and the fact that holds there."""

    span: Span
    text: str
    primary: bool = False


@dataclass(frozen=True)
class Diagnostic:
    """One fault: `title` says what is wrong in the spec's words, `hint` what would be accepted."""

    code: str
    title: str
    labels: tuple[Label, ...] = ()
    hint: str | None = None
    severity: Severity = "error"


class SpecError(Exception):
    """A wrong spec: carries all diagnostics of the stage that found it."""

    def __init__(self, diagnostics: Iterable[Diagnostic]):
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(f"{d.code}: {d.title}" for d in self.diagnostics))


@dataclass
class Faults:
    """Collects the diagnostics of one stage, in the order of their places."""

    found: list[Diagnostic] = field(default_factory=list)

    def error(
        self,
        code: str,
        title: str,
        span: Span | None,
        text: str,
        hint: str,
        *others: tuple[Span, str],
    ) -> None:
        """Record an error: the primary label at `span`, further labels for the other parties."""
        self._add("error", code, title, span, text, hint, others)

    def warning(
        self,
        code: str,
        title: str,
        span: Span | None,
        text: str,
        hint: str | None,
        *others: tuple[Span, str],
    ) -> None:
        """Record a warning; it does not stop the pipeline."""
        self._add("warning", code, title, span, text, hint, others)

    def _add(
        self,
        severity: Severity,
        code: str,
        title: str,
        span: Span | None,
        text: str,
        hint: str | None,
        others: tuple[tuple[Span, str], ...],
    ) -> None:
        labels: tuple[Label, ...] = ()
        if span is not None:
            labels = (Label(span, text, primary=True),)
        labels += tuple(Label(place, words) for place, words in others)
        diagnostic = Diagnostic(code, title, labels, hint, severity)
        # the same fault at the same place is said once, however often it is come upon
        if all(_identity(diagnostic) != _identity(known) for known in self.found):
            self.found.append(diagnostic)

    @property
    def errors(self) -> list[Diagnostic]:
        """The errors alone."""
        return [d for d in self.found if d.severity == "error"]

    @property
    def warnings(self) -> list[Diagnostic]:
        """The warnings alone."""
        return [d for d in self.found if d.severity == "warning"]

    def stop_on_errors(self) -> None:
        """Raise `SpecError` if any error was recorded."""
        if self.errors:
            raise SpecError(self.errors)


def _identity(diagnostic: Diagnostic) -> tuple[object, ...]:
    """What a fault is and where; spans themselves are not compared."""
    places = tuple((id(x.span.source), x.span.start, x.span.end, x.text) for x in diagnostic.labels)
    return (diagnostic.code, diagnostic.title, diagnostic.severity, diagnostic.hint, places)
