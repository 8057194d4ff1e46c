"""The level score, read back from its SVG: all is there, to scale, and nothing lies on another."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

import nlc
from nlc.ir.system import System
from nlc.view import as_svg
from nlc.view.parts import FIRST, LAST, LEVEL
from nlc.view.style import SCORE
from tests.unit.view.picture import Area, Picture, Shown, faults, read
from tests.unit.view.systems import (
    LIBRARY,
    every_file,
    every_seed,
    hard,
    load,
    made,
    path_of,
    score,
    seen,
)  # fmt: skip

# ---- what must hold for every picture ----------------------------------------------------------


@every_file
def test_nothing_lies_on_another_or_is_cut(path: Path) -> None:
    assert faults(seen(path)) == []


@every_seed
def test_nothing_lies_on_another_in_random_systems(seed: int) -> None:
    system = made(seed)
    picture = read(as_svg(system))
    assert faults(picture) == []
    _check_whole(system, picture)


@every_file
def test_every_component_and_every_edge_is_there(path: Path) -> None:
    _check_whole(load(path), seen(path))


def _check_whole(system: System, picture: Picture) -> None:
    shown = [name for box in picture.boxes if box.kind != "elsewhere" for name in box.names]
    states = {c.name for c in system.components if c.kind == "optimizer"}
    assert set(shown) == {c.name for c in system.components}
    # a level's optimizer stands beside its name in each part of a long picture
    assert len([n for n in shown if n not in states]) == len(system.components) - len(states)
    drawn = {edge for way in picture.ways for edge in way.edges}
    assert drawn == {(e.source, e.target, e.kind) for e in system.edges}


@every_file
def test_components_stand_in_the_row_of_their_level(path: Path) -> None:
    system = load(path)
    level_of = {c.name: c.level for c in system.components}
    for level, row in _rows(system, seen(path)):
        for box in seen(path).boxes:
            if row.y1 < box.area.y1 < row.y2:
                assert {level_of[name] for name in box.names} == {level}


def _rows(system: System, picture: Picture) -> list[tuple[str, Area]]:
    """The rows of a picture, with the level whose name stands in each."""
    names = {level.name for level in system.levels}
    edges = sorted(picture.rules)
    found = []
    for top, bottom in pairwise(edges):
        title = "".join(
            w.text for w in picture.words
            if w.size == LEVEL and top < w.area.y1 < bottom and w.area.x1 < 180
        )  # fmt: skip
        cut = title.endswith("…") and title[:-1]
        level = next((n for n in names if n == title or (cut and n.startswith(cut))), None)
        if level:
            found.append((level, Area(0, top, picture.width, bottom)))
    assert bool(found) == bool(system.components)
    return found


@every_file
def test_levels_stand_fastest_first(path: Path) -> None:
    system = load(path)
    order = [level.name for level in system.levels]
    rows = [order.index(level) for level, _ in _rows(system, seen(path))]
    # a long picture has several parts, and each begins anew
    parts = [i for i, (a, b) in enumerate(pairwise(rows)) if b <= a]
    assert len(parts) < len(system.blocks) + 1
    assert path not in LIBRARY or not parts


@every_file
def test_same_spec_same_picture(path: Path) -> None:
    assert as_svg(nlc.load(path)) == score(path)


@every_file
def test_a_picture_stands_alone(path: Path) -> None:
    text = score(path)
    assert ET.fromstring(text).attrib["width"] == "1200"
    assert not re.search(r"(href|src|url)\s*[=(]", text)
    assert "<script" not in text
    assert "NaN" not in text and "nan" not in re.findall(r'="([\d.nan-]+)"', text)


# ---- time --------------------------------------------------------------------------------------


def _marks(picture: Picture, row: Area) -> list[float]:
    """The places of the short marks in a row, as parts of the axis."""
    inside = [t for t in picture.ticks if row.y1 < t.y1 < row.y2 and t.x2 - t.x1 < 5]
    short = min((t.y2 - t.y1 for t in inside), default=0.0)
    places = [(t.x1 + t.x2) / 2 for t in inside if t.y2 - t.y1 == short]
    places += [x for x, y in picture.dots if row.y1 < y < row.y2]
    return [(x - FIRST) / (LAST - FIRST) for x in places]


def test_marks_are_at_the_multiples_of_the_period() -> None:
    found = seen(path_of("hope"))
    rows = dict(_rows(hard("hope"), found))
    for level, period, shown in (
        ("beat", 16, 512), ("phrase", 64, 512), ("period", 256, 512),
        ("slow", 1, 16), ("glacial", 8, 16),
    ):  # fmt: skip
        wanted = [k * period / shown for k in range(1, shown // period + 1)]
        assert _marks(found, rows[level]) == pytest.approx(wanted, abs=1e-4)


def test_chunks_have_taller_marks() -> None:
    found = seen(path_of("titans_lmm"))
    row = dict(_rows(hard("titans_lmm"), found))["fast"]
    assert _marks(found, row) == pytest.approx([k / 32 for k in range(1, 33)], abs=1e-4)
    tallest = max(t.y2 - t.y1 for t in found.ticks)
    tall = [(t.x1 + t.x2) / 2 for t in found.ticks if t.y2 - t.y1 == tallest]
    assert [(x - FIRST) / (LAST - FIRST) for x in tall] == pytest.approx([0.5, 1.0], abs=1e-4)


def test_a_chunk_that_no_axis_reaches_is_said_in_words() -> None:
    found = seen(path_of("long_names"))
    words = [w.text for w in found.words]
    assert "frozen reads: renewed each 1,048,576" in " ".join(words)
    assert not any(word.startswith("tall:") for word in words)
    assert len({round(t.y2 - t.y1, 1) for t in found.ticks if t.x2 - t.x1 < 5}) == 1


def test_tokens_and_steps_have_axes_of_their_own() -> None:
    words = [w.text for w in seen(path_of("hope")).words]
    assert words.count("tokens of a sequence") == words.count("training steps") == 1
    assert "512" in words and "16" in words


def test_periods_that_are_far_apart_are_told_apart() -> None:
    found = seen(path_of("far_periods"))
    words = [w.text for w in found.words]
    assert words.count("tokens of a sequence") == words.count("training steps") == 2
    assert {"32", "4,194,304", "6", "20,000"} <= set(words)
    rows = dict(_rows(hard("far_periods"), found))
    assert len(_marks(found, rows["a"])) == 32
    assert len(_marks(found, rows["b"])) == 16
    assert _marks(found, rows["e"]) == pytest.approx([0.5, 1.0], abs=1e-4)


def test_what_is_always_new_and_what_never_changes_is_said() -> None:
    words = {w.text for w in seen(path_of("many_blocks")).words}
    assert {"recomputed for each query", "never changes"} <= words


# ---- boxes -------------------------------------------------------------------------------------


def _box(picture: Picture, name: str) -> Shown:
    return next(box for box in picture.boxes if name in box.names and box.kind != "elsewhere")


def test_weights_of_one_use_share_a_box_with_their_number() -> None:
    found = seen(path_of("goose"))
    box = _box(found, "time_mix.mu_r")
    assert {f"time_mix.mu_{letter}" for letter in "rwkvag"} <= set(box.names)
    assert box.words[0].text == "mu_r, mu_w, mu_k, +3"
    assert box.words[1].text == "6 × vector 128"
    assert len(found.boxes) < 20


def test_memories_of_one_kind_share_a_box_where_there_are_many() -> None:
    box = _box(seen(path_of("hope")), "hope.M_k")
    assert set(box.names) == {"hope.M_k", "hope.M_v", "hope.M_eta", "hope.M_alpha"}


def test_what_a_net_is_for_stands_at_the_memory() -> None:
    words = {w.text for w in _box(seen(path_of("titans_lmm")), "mixer.M").words}
    assert {"query", "keys", "values", "gates", "start", "out"} <= words


def test_a_block_is_framed_with_how_often_it_is_there() -> None:
    words = {w.text for w in seen(path_of("many_blocks")).words}
    assert {"attention × 8", "delta × 24", "mlp_slow × 24", "frozen_features"} <= words


def test_a_state_of_an_optimizer_is_joined_to_those_that_take_it_and_no_other() -> None:
    text = """
system a "a"
dims { d = 4 }
level slow every 1 step, optimizer r(lr = 0.1)
rule r(lr) {
  state fresh = 0
  state calm = 0
  state late[] = 0
  fresh = fresh + grad
  late  = late + 1
  self  = self - lr * fresh * late
  every 5 steps { calm = calm + grad; late = late + mean(calm, over = (in, out)) }
}
block b(x[d]) -> y[d] { weights W : linear(d -> d) at slow; y = W(x) }
"""
    picture = read(as_svg(nlc.parse(text)))
    boxes = {name.rsplit(".", 1)[1]: box for box in picture.boxes for name in box.names}
    ways = [w for w in picture.ways if w.edges[0][2] == "reads" and "slow.r" in w.edges[0][1]]
    joined = {edge[:2] for way in ways for edge in way.edges}
    assert joined == {("slow.r.calm", "slow.r.late")}
    xs = [(part.y1, part.y2) for part in ways[0].parts]
    ends = sorted(y for pair in xs for y in pair)
    between = [boxes["calm"].area, boxes["late"].area]
    upper, lower = sorted(between, key=lambda area: area.y1)
    assert upper.y1 <= ends[0] and ends[-1] <= lower.y2


def test_states_of_an_optimizer_stand_beside_the_name_of_their_level() -> None:
    found = seen(path_of("optimizers"))
    fast, slow = _box(found, "slow.m3.m1"), _box(found, "slow.m3.m2")
    assert "slow.m3.v" in fast.names
    assert fast.area.y2 < slow.area.y1
    assert slow.area.x2 < 190
    # the state that changes every eighth call has marks of its own
    assert [w.text for w in found.words].count("every 16 steps") >= 2


def test_names_that_are_too_long_are_broken_then_cut() -> None:
    words = [w.text for w in seen(path_of("long_names")).words]
    assert "weights_that_make_the_query" in "".join(words)
    assert any(word.endswith("…") for word in words)


def test_a_spec_of_rules_says_so() -> None:
    words = [w.text for w in seen(path_of("rules")).words]
    assert any(word.startswith("Rules for other specs: sgd") for word in words)


# ---- style -------------------------------------------------------------------------------------


def test_it_follows_the_theme_and_prints_whole() -> None:
    text = score(path_of("hope"))
    assert "@media screen and (prefers-color-scheme:dark)" in text
    assert "@media print" in text


def test_its_style_touches_nothing_else_on_a_page() -> None:
    style = re.search(r"<style>(.*?)</style>", score(path_of("hope")), re.DOTALL)
    assert style is not None
    rules = re.sub(r"@media[^{]*", "", style[1])
    selectors = re.findall(r"([^{}]+)\{", rules)
    assert [s for s in map(str.strip, selectors) if s and f".{SCORE}" not in s] == []


def test_kinds_differ_without_colour() -> None:
    """Each kind of net has its own dashes, weight or tip; each kind of box its border or form."""
    from nlc.view.style import FORMS, LIGHT, NETS

    def look(kind: str) -> tuple[str, bool]:
        open_tip = kind in ("reads", "backprop")
        return FORMS[f".{kind}"], open_tip

    assert len({look(kind) for kind in NETS}) == len(NETS)
    assert set(NETS) <= set(LIGHT)


def test_notebooks_get_the_picture() -> None:
    system = hard("hope")
    assert system._repr_svg_() == as_svg(system)


@pytest.mark.parametrize("words", ['<b>&amp;\\"', "]]> ­ é ́", "много слов", "🙂 記憶 " * 30])
def test_any_words_can_be_in_a_title(words: str) -> None:
    text = f'system a "{words}"\nlevel slow every 1 step, optimizer sgd(lr = 0.1)\n'
    text += "block b(x[d]) -> y[d] { weights W : linear(d -> d); y = W(x) }\ndims { d = 2 }\n"
    system = nlc.parse(text)
    root = ET.fromstring(as_svg(system))
    assert faults(read(as_svg(system))) == []
    assert system.about in (root.findtext("{http://www.w3.org/2000/svg}title") or "")


def test_the_check_of_pictures_sees_what_is_wrong() -> None:
    text = score(path_of("titans_lmm"))
    box = re.search(r'<rect x="([\d.]+)" y="([\d.]+)" [^>]*class="box memory"/>', text)
    assert box is not None
    for old, new in (
        (f'<rect x="{box[1]}" y="{box[2]}"', f'<rect x="{box[1]}" y="{float(box[2]) + 60}"'),
        (">M.S<", ">" + "M.S" * 9 + "<"),
        (">training steps<", ">" + "training steps " * 9 + "<"),
    ):
        assert text.count(old) == 1
        assert faults(read(text.replace(old, new)))
