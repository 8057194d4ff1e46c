"""Find the fenced blocks of a page, and make whole specs of the fragments among them.

What stands after the fence says what a block is:

    nl                       a whole spec, or clauses of its top level
    nl block | memory | update | model
                             lines of that place
    nl of SPEC               lines of a spec of the library, as they stand there
    nl ... NL0203            the same, which gives this code
    yaml, python, console    a whole spec; code; commands after `$` with lines of what they print
    text                     neither runs nor is checked
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fence:
    """One fenced block: what it is, its text, and where its first line stands."""

    info: str
    text: str
    page: str
    line: int

    @property
    def kind(self) -> str:
        return self.info.split()[0] if self.info else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and all pages written by hand; the specs of errors.md run in tests/errors."""
    written = (p for p in (ROOT / "docs").rglob("*.md") if p.name != "errors.md")
    return [ROOT / "README.md", *sorted(written)]


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Fence(m[2].strip(), m[3], name, text.count("\n", 0, m.start()) + 2)
        for m in FENCE.finditer(text)
    ]


# ---- frames: what a fragment may lean on -------------------------------------------------------

HEAD = "system example\n"
DIMS = "dims { d = 8, heads = 2, d_k = 4, d_v = 3, n = 4 }\n"
LEVELS = (
    "level now always\nlevel fast every 1 token\nlevel slow every 1 step, optimizer sgd(lr = 0.1)\n"
)
OUTSIDE = """weights U_q, U_k : linear(d -> heads*d_k)
weights U_v : linear(d -> heads*d_v)
weights U_g : linear(d -> heads)
weights U_o : linear(heads*d_v -> d)
"""
STREAMS = """q, k, v = unit(U_q(x)), unit(U_k(x)), U_v(x)
beta, alpha = sigmoid(U_g(x)), sigmoid(U_g(x) + 1)
"""
MEMORY = "memory M : linear(d_k -> d_v) at fast {{\n{body}\n}}\n"
UPDATE = "key k\nvalue v\nupdate {{\n{body}\n}}"
MIXER = "block mixer(x[d]) -> out[d] {{\n{body}\n}}\n"
MODEL = "model {\nvocab bytes\nx[d] = embed(tokens)\nx = x + mixer(x)\nlogits = unembed(x)\n}\n"
# an own stream of these names in a fragment takes the place of the frame's
OWN = re.compile(
    r"^\s*(?:memory|weights|block|level|dims|model)?\s*([\w, ]+?)(?:\[[^=]*\])?\s*[=:]", re.M
)


def whole(fence: Fence) -> str:
    """Make a whole spec of a fence."""
    words = [w for w in fence.info.split()[1:] if not w.startswith("NL")]
    place = words[0] if words else ""
    if re.search(r"^system\b", fence.text, re.MULTILINE):
        return fence.text
    match place:
        case "":
            return HEAD + _clauses(fence.text)
        case "block":
            return HEAD + DIMS + LEVELS + MIXER.format(body=_inside(fence.text))
        case "memory":
            return _with_memory(MEMORY.format(body=fence.text))
        case "update":
            return _with_memory(MEMORY.format(body=UPDATE.format(body=fence.text)))
        case "of":
            spec = (ROOT / "specs" / f"{words[1]}.nl").read_text("utf-8")
            assert _indented(fence.text) in spec, f"{fence}: these lines do not stand in {words[1]}"
            return spec
        case "model":
            blocks = MIXER.format(body=_inside(""))
            return HEAD + DIMS + LEVELS + blocks + f"model {{\n{fence.text}\n}}\n"
    raise AssertionError(f"{fence}: unknown place {place}")


def _indented(text: str) -> str:
    """Lines of a block as they stand in a spec: two spaces deeper."""
    return textwrap.indent(text, "  ")


def _clauses(text: str) -> str:
    """Top-level clauses, with dims and levels where there are none."""
    front = "" if re.search(r"^dims\b", text, re.M) else DIMS
    front += "" if re.search(r"^level\b", text, re.M) else LEVELS
    return front + text


def _inside(text: str) -> str:
    """Lines of a block, with the streams they may use and an output where they have none."""
    own = {name.strip() for names in OWN.findall(text) for name in names.split(",")}
    streams = "" if own & {"q", "k", "v"} else STREAMS
    out = "" if re.search(r"^\s*out\b", text, re.M) else "out = U_o(v)\n"
    return OUTSIDE + streams + text + "\n" + out


def _with_memory(memory: str) -> str:
    return HEAD + DIMS + LEVELS + MIXER.format(body=OUTSIDE + STREAMS + memory + "out = U_o(M(q))")
