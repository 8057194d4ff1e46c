"""The style of a level score: its colours in light and dark, and what tells kinds apart in print.

Kinds of boxes differ in border and form, kinds of nets in dashes, weight and tip, so that colour is
never all that tells them apart. All rules hold within a score only, for a page may have others.
"""

from __future__ import annotations

# the class of the whole picture
SCORE = "level-score"
FONTS = (
    '"Helvetica Neue",Helvetica,Arial,"Liberation Sans","Noto Sans","PingFang SC",'
    '"Microsoft YaHei","Noto Sans CJK SC","DejaVu Sans",sans-serif'
)

BOXES = ("weights", "memory", "state", "start", "pairs", "optimizer")
NETS = ("generates", "reads", "initialises", "optimises", "backprop")
# for boxes, the fill and the border
LIGHT = {
    "text": "#1a1d21", "soft": "#555d66", "page": "#ffffff", "rule": "#c9ced4",
    "frame": "#8b939c",
    "weights": "#ffffff #6b737c", "memory": "#ffecd1 #a65300", "state": "#fff6e8 #a65300",
    "start": "#efe7fb #6c3fc0", "pairs": "#efe7fb #6c3fc0", "optimizer": "#fde7e9 #b3202c",
    "generates": "#116329", "reads": "#0553b1", "initialises": "#6c3fc0",
    "optimises": "#b3202c", "backprop": "#85600a",
}  # fmt: skip
DARK = {
    "text": "#e8ebef", "soft": "#a3abb5", "page": "#0f1216", "rule": "#3c434c",
    "frame": "#747d88",
    "weights": "#171b21 #98a1ac", "memory": "#402a0c #f0a64b", "state": "#2a1f10 #f0a64b",
    "start": "#2a2044 #b79bf5", "pairs": "#2a2044 #b79bf5", "optimizer": "#3d191d #ff8b86",
    "generates": "#56c271", "reads": "#6bb1ff", "initialises": "#b79bf5",
    "optimises": "#ff8b86", "backprop": "#d9a93c",
}  # fmt: skip
FORMS = {
    "text": f"font-family:{FONTS}",
    ".bold": "font-weight:600",
    ".rule": "fill:none",
    ".frame": "fill:none;stroke-dasharray:4 3",
    ".axis": "fill:none",
    ".bar": "fill:none;stroke-dasharray:2 3",
    ".frozen": "stroke-dasharray:1 5",
    ".dense": "opacity:.6",
    ".always": "opacity:.35",
    ".weights": "stroke-width:1.2",
    ".memory": "stroke-width:2.4",
    ".state": "stroke-width:1.4",
    ".start": "stroke-width:1.4",
    ".pairs": "stroke-width:1.4;stroke-dasharray:6 2",
    ".optimizer": "stroke-width:1.2",
    ".elsewhere": "fill:none;stroke-width:1;stroke-dasharray:3 2",
    ".net": "fill:none;stroke-linejoin:round",
    ".halo": "fill:none;stroke-width:5",
    ".bracket": "fill:none;stroke-width:2",
    ".generates": "stroke-width:1.6",
    ".reads": "stroke-width:1.6",
    ".initialises": "stroke-width:2;stroke-dasharray:2 3",
    ".optimises": "stroke-width:3",
    ".backprop": "stroke-width:1.4;stroke-dasharray:6 3",
    ".tip": "stroke-width:1.3;stroke-dasharray:none",
}


def _colours(colours: dict[str, str]) -> dict[str, str]:
    """The rules of one set of colours."""
    rules = {
        "text": f"fill:{colours['text']}",
        ".soft": f"fill:{colours['soft']}",
        ".page": f"fill:{colours['page']}",
        ".rule": f"stroke:{colours['rule']}",
        ".bar": f"stroke:{colours['frame']}",
        ".frame": f"stroke:{colours['frame']}",
        ".halo": f"stroke:{colours['page']}",
        ".mark": f"fill:{colours['text']}",
        ".axis": f"stroke:{colours['soft']}",
        ".elsewhere": f"stroke:{colours['soft']}",
        ".bracket": f"stroke:{colours['optimises']}",
    }
    for kind in BOXES:
        fill, border = colours[kind].split()
        rules[f".{kind}"] = f"fill:{fill};stroke:{border}"
    for kind in NETS:
        rules[f".{kind}"] = f"stroke:{colours[kind]}"
        # what only reads, or passes the gradient, has an open tip
        tip = colours["page" if kind in ("reads", "backprop") else kind]
        rules[f".tip.{kind}"] = f"fill:{tip}"
    return rules


def _written(rules: dict[str, str]) -> str:
    return "\n".join(f".{SCORE} {selector}{{{rule}}}" for selector, rule in rules.items())


STYLE = "\n".join(
    [
        "",
        _written(FORMS),
        _written(_colours(LIGHT)),
        "@media screen and (prefers-color-scheme:dark){",
        _written(_colours(DARK)),
        "}",
        f"@media print{{svg.{SCORE}{{width:100%;height:auto}}}}",
        "",
    ]
)
