"""Sums of scaled lists: the form in which an equation over lists of tensors is written.

Data only: lists by name, terms `factor * a`, `factor * a * b` or `factor * a / b`, and sums of
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nlc.codegen.rules.numbers import ZERO, Number, plus

from nlc.ir.shape import Shape


@dataclass(frozen=True)
class Tensors:
    """A list by its name; `fresh`: nothing else holds its tensors, and it is used once."""

    name: str
    shape: Shape
    fresh: bool = False


@dataclass(frozen=True)
class Term:
    """factor * a, factor * a * b, or factor * a / b (`sign` is "", "*" or "/")."""

    factor: Number
    shape: Shape
    a: Tensors
    sign: str = ""
    b: Tensors | None = None

    @property
    def names(self) -> set[str]:
        """The lists it reads."""
        return {self.a.name} | ({self.b.name} if self.b is not None else set())


@dataclass
class Sum:
    """Terms and a number that is added to every entry."""

    terms: list[Term] = field(default_factory=list)
    number: Number = ZERO

    def add(self, term: Term) -> None:
        """Add a term, joining it with a like one."""
        for i, other in enumerate(self.terms):
            if (other.a, other.sign, other.b) == (term.a, term.sign, term.b):
                self.terms[i] = replace(term, factor=plus(other.factor, term.factor))
                return
        self.terms.append(term)
