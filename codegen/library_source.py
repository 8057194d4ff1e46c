"""The text of library functions, for copying into an emitted file.

In: names of functions and classes of the library. Out: their source, and that of what they use, in
the order in which they stand there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

FILES = (
    "library_products",
    "library",
    "library_norms",
    "library_maps",
    "library_tiles",
    "library_gates",
    "library_scan",
    "library_states",
    "library_numbers",
    "library_known",
    "library_chunks",
    "library_entries",
    "library_attention",
    "library_slots",
    "library_opened",
    "library_online",
)


# a function that is mentioned, and the file whose definitions then stand for others of their name
INSTEAD = {"layernorm_slope": "library_norms"}


@cache
def _definitions(without: tuple[str, ...] = ()) -> dict[str, tuple[str, frozenset[str]]]:
    """Each definition's text and the names it mentions, in order; a later one stands for both."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for file in FILES:
        if file in without:
            continue
        text = files("nlc.codegen").joinpath(f"{file}.py").read_text("utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
                own = {n.id for n in names if isinstance(n.ctx, ast.Store)}
                own |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
                mentioned = {n.id for n in names} - own
                lines = text.splitlines()
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                body = "\n".join(lines[first - 1 : node.end_lineno])
                found[node.name] = (body, frozenset(mentioned))
    return found


@cache
def library_names() -> tuple[str, ...]:
    """All functions and classes of the library."""
    return tuple(_definitions())


def library_texts(names: Iterable[str]) -> list[str]:
    """Return the texts of the named definitions and of all that they need."""
    waiting = sorted(names)
    definitions = _definitions(tuple(file for name, file in INSTEAD.items() if name not in waiting))
    wanted: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in wanted or name not in definitions:
            continue
        wanted.add(name)
        waiting.extend(sorted(definitions[name][1]))
    return [text for name, (text, _) in definitions.items() if name in wanted]


def needed(file: str, names: Iterable[str]) -> list[str]:
    """Return the texts of definitions of another library file and of all that they need there."""
    texts = _sources(file)
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in texts and name not in wanted:
            wanted.add(name)
            tree = ast.parse(texts[name])
            waiting += sorted(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))
    return [text for name, text in texts.items() if name in wanted]


def source_of(file: str, name: str) -> str:
    """Return the text of one definition of another library file."""
    return _sources(file)[name]


def constant(file: str, name: str) -> list[str]:
    """Return the lines of a constant of a library file, with the comment above it."""
    lines = files("nlc.codegen").joinpath(f"{file}.py").read_text("utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
    return lines[at - lines[at - 1].startswith("#") : at + 1]


@cache
def _sources(file: str) -> dict[str, str]:
    text = files("nlc.codegen").joinpath(f"{file}.py").read_text("utf-8")
    lines = text.splitlines()
    return {
        node.name: "\n".join(
            lines[
                min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno
            ]
        )
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
