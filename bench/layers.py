"""The shipped layers that are measured: a memory with its projections, convolutions and norms."""

from __future__ import annotations

from importlib.resources import files

import nlc
from bench.cores import HEADS, SIZE
from nlc.compiled import Compiled

WIDTH = HEADS * SIZE
LAYERS = ("deltanet", "gated_deltanet", "titans_linear")


def layer(name: str) -> Compiled:
    """Compile a shipped system, its mixer as large as the cores are."""
    sizes = {"dims.d": WIDTH, "dims.heads": HEADS, "dims.d_k": SIZE, "dims.d_v": SIZE}
    text = files("nlc.specs").joinpath(f"{name}.nl").read_text("utf-8")
    return nlc.compile(nlc.parse(text, set=sizes))
