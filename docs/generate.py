"""Write the generated pages of docs/: `docs/errors.md`, from the catalogue of codes.

`python docs/generate.py` writes; a test compares what it would write with what is there.
"""

from __future__ import annotations

from pathlib import Path

from nlc.errors import Entry, catalogue

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


if __name__ == "__main__":
    page = Path(__file__).parent / "errors.md"
    page.write_text(errors_page(), encoding="utf-8", newline="\n")
    print(f"wrote {page}")
