"""Write what is generated in docs/: the page of codes, and the pictures of all pages.

`errors.md` comes from the catalogue. Where a page shows `pictures/NAME.svg`, this is the level
score of the spec that begins with `# NAME.nl` on the page, or of the shipped spec NAME. `python
docs/generate.py` writes; a test compares what it would write with what is there.
"""

from __future__ import annotations

import re
from pathlib import Path

import nlc
from nlc.errors import Entry, catalogue
from nlc.view import as_svg

DOCS = Path(__file__).parent

RANGES = {
    "NL01": "Syntax and files",
    "NL02": "Levels and periods",
    "NL03": "Names",
    "NL04": "Dims and shapes",
    "NL05": "Memories, rules and updates",
    "NL06": "Time and reading",
    "NL07": "Blocks and models",
    "NL08": "Not supported yet",
    "NL09": "Warnings",
}


def errors_page() -> str:
    """Return the page of all codes."""
    lines = [
        "# Faults",
        "",
        "Made from `nlc/catalogue/` by `make docs`. Each code with its cause, a spec that gives it",
        "and the mended spec; `nlc explain CODE` shows the same with the rendered message.",
    ]
    for start, title in RANGES.items():
        entries = [e for code, e in catalogue().items() if code.startswith(start)]
        if entries:
            lines += ["", f"## {title}"]
        for entry in entries:
            lines += ["", *_section(entry)]
    return "\n".join(lines) + "\n"


def _section(entry: Entry) -> list[str]:
    return [
        f"### {entry.code}: {entry.title}",
        "",
        entry.cause.strip(),
        "",
        f"```{entry.form} {entry.code}",
        entry.wrong.rstrip("\n"),
        "```",
        "",
        f"```{entry.form}",
        entry.right.rstrip("\n"),
        "```",
    ]


def pages() -> list[Path]:
    """Return the README and all pages."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def pictures() -> dict[Path, str]:
    """Return the level score of every spec that a page shows: one of its own, or a shipped one."""
    found: dict[Path, str] = {}
    for page in pages():
        text = page.read_text("utf-8")
        for link, name in re.findall(r"\(((?:[\w/]+/)?pictures/(\w+)\.svg)\)", text):
            own = re.search(rf"^```nl\n(# {name}\.nl\n.*?)^```", text, re.MULTILINE | re.DOTALL)
            spec = DOCS.parent / "specs" / f"{name}.nl"
            system = nlc.parse(own[1]) if own else nlc.load(spec)
            found[page.parent / link] = as_svg(system)
    return found


def generated() -> dict[Path, str]:
    """Return everything that is generated, by its file."""
    return {DOCS / "errors.md": errors_page(), **pictures()}


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path}")
