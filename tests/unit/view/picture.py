"""A level score read back from its SVG: boxes, frames, texts, ways and marks with their places.

The tests look at the picture and not at the layout that made it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nlc.view.measure import width

SVG = "{http://www.w3.org/2000/svg}"
T = TypeVar("T")
EDGE = re.compile(r"(\S+) → (\S+) \((\w+)\): ")


@dataclass(frozen=True)
class Area:
    """A rectangle."""

    x1: float
    y1: float
    x2: float
    y2: float

    def meets(self, other: Area, near: float = 0.0) -> bool:
        """Whether two share more than their borders, or come nearer than `near`."""
        across = self.x1 < other.x2 + near - 0.01 and other.x1 < self.x2 + near - 0.01
        return across and self.y1 < other.y2 + near - 0.01 and other.y1 < self.y2 + near - 0.01

    def holds(self, other: Area) -> bool:
        """Whether another lies within."""
        inside = self.x1 <= other.x1 + 0.1 and other.x2 <= self.x2 + 0.1
        return inside and self.y1 <= other.y1 + 0.1 and other.y2 <= self.y2 + 0.1

    def inner(self, by: float) -> Area:
        """The same, smaller on all sides."""
        return Area(self.x1 + by, self.y1 + by, self.x2 - by, self.y2 - by)


@dataclass(frozen=True)
class Words:
    """A line of text and the room it takes."""

    text: str
    size: float
    area: Area


@dataclass(frozen=True)
class Shown:
    """A box: the components it stands for, its texts, and its place."""

    names: tuple[str, ...]
    kind: str
    area: Area
    words: tuple[Words, ...]


@dataclass(frozen=True)
class Way:
    """What joins boxes: its edges, and the straight parts it is drawn with."""

    edges: tuple[tuple[str, str, str], ...]
    parts: tuple[Area, ...]


@dataclass
class Picture:
    """What is to be seen in a level score."""

    width: float
    height: float
    boxes: list[Shown] = field(default_factory=list)
    frames: list[Area] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)
    ticks: list[Area] = field(default_factory=list)
    dots: list[tuple[float, float]] = field(default_factory=list)
    rules: list[float] = field(default_factory=list)

    @property
    def free_words(self) -> list[Words]:
        """The texts outside of boxes."""
        inside = [w for box in self.boxes for w in box.words]
        return [w for w in self.words if w not in inside]


def read(svg: str) -> Picture:
    """Read a picture."""
    root = ET.fromstring(svg)
    picture = Picture(float(root.attrib["width"]), float(root.attrib["height"]))
    _walk(root, picture)
    return picture


def _walk(node: ET.Element, picture: Picture) -> None:
    for child in node:
        style = child.attrib.get("class", "")
        if child.tag == f"{SVG}g" and style == "component":
            picture.boxes.append(_box(child))
        elif child.tag == f"{SVG}g" and style == "edge":
            picture.ways.append(_way(child))
        elif child.tag == f"{SVG}rect" and style == "frame":
            picture.frames.append(_area(child))
        elif child.tag == f"{SVG}rect" and "mark" in style.split():
            picture.ticks.append(_area(child))
        elif child.tag == f"{SVG}circle":
            picture.dots.append((float(child.attrib["cx"]), float(child.attrib["cy"])))
        elif child.tag == f"{SVG}path" and style == "rule":
            picture.rules.append(float(re.findall(r"M0 ([\d.]+)", child.attrib["d"])[0]))
        if child.tag == f"{SVG}text":
            picture.words.append(_words(child))
        elif child.tag == f"{SVG}g":
            _walk(child, picture)


def _box(node: ET.Element) -> Shown:
    title = node.findtext(f"{SVG}title") or ""
    names = tuple(re.findall(r"^(\S+): ", title, re.MULTILINE))
    rect = node.find(f"{SVG}rect")
    assert rect is not None
    words = tuple(_words(t) for t in node.iter(f"{SVG}text"))
    return Shown(names, rect.attrib["class"].split()[-1], _area(rect), words)


def _way(node: ET.Element) -> Way:
    edges = tuple(EDGE.findall(node.findtext(f"{SVG}title") or ""))
    paths = [p.attrib["d"] for p in node.iter(f"{SVG}path") if "net" in p.attrib["class"].split()]
    return Way(edges, tuple(part for path in paths for part in _straight(path)))


def _straight(path: str) -> list[Area]:
    """The level and upright parts of a path; its bends are left out."""
    parts, x, y = [], 0.0, 0.0
    for command, rest in re.findall(r"([MHVQ])([^MHVQ]*)", path):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", rest)]
        match command:
            case "H":
                nx, ny = numbers[0], y
            case "V":
                nx, ny = x, numbers[0]
            case _:
                nx, ny = numbers[-2], numbers[-1]
        if command in "HV" and (nx, ny) != (x, y):
            parts.append(Area(min(x, nx), min(y, ny), max(x, nx), max(y, ny)))
        x, y = nx, ny
    return parts


def _area(node: ET.Element) -> Area:
    x, y = float(node.attrib["x"]), float(node.attrib["y"])
    return Area(x, y, x + float(node.attrib["width"]), y + float(node.attrib["height"]))


def _words(node: ET.Element) -> Words:
    text, size = node.text or "", float(node.attrib["font-size"])
    wide = width(text, size, bold="bold" in node.attrib.get("class", ""))
    part = {"start": 0.0, "middle": 0.5, "end": 1.0}[node.attrib.get("text-anchor", "start")]
    x, y = float(node.attrib["x"]) - part * wide, float(node.attrib["y"])
    return Words(text, size, Area(x, y - 0.75 * size, x + wide, y + 0.22 * size))


# ---- what must not be --------------------------------------------------------------------------


def faults(picture: Picture) -> list[str]:
    """Say what is wrong with a picture: things on each other, cut off, or lost."""
    found = [*_boxes(picture), *_texts(picture), *_ways(picture)]
    return list(dict.fromkeys(found))


def _boxes(picture: Picture) -> list[str]:
    found = []
    page = Area(0, 0, picture.width, picture.height)
    boxes = picture.boxes
    for i, a in enumerate(boxes):
        if not page.inner(8).holds(a.area):
            found.append(f"{a.names} leaves the page")
        found += [f"{a.names} on {b.names}" for b in boxes[i + 1 :] if a.area.meets(b.area, 6)]
        for frame in picture.frames:
            if a.area.meets(frame) and not frame.inner(4).holds(a.area):
                found.append(f"{a.names} stands on the border of a frame")
        for y in picture.rules:
            if a.area.y1 - 4 < y < a.area.y2 + 4:
                found.append(f"{a.names} stands on the border of a level")
    for i, f in enumerate(picture.frames):
        found += ["two frames on each other" for g in picture.frames[i + 1 :] if f.meets(g, 4)]
    return found


class Index(Generic[T]):
    """Things by their height on the page, to find those near a place."""

    STEP = 40.0

    def __init__(self, things: Iterable[tuple[Area, T]]):
        self.shelves: dict[int, list[tuple[int, Area, T]]] = defaultdict(list)
        for number, (area, thing) in enumerate(things):
            for shelf in self.over(area):
                self.shelves[shelf].append((number, area, thing))

    def over(self, area: Area) -> range:
        return range(int(area.y1 // self.STEP), int(area.y2 // self.STEP) + 1)

    def meeting(self, area: Area, after: int = -1) -> list[T]:
        """All that an area lies on, but for the first ones up to number `after`."""
        found = {
            number: thing
            for shelf in self.over(area) for number, other, thing in self.shelves[shelf]
            if number > after and area.meets(other)
        }  # fmt: skip
        return list(found.values())


def _texts(picture: Picture) -> list[str]:
    found = []
    page = Area(0, 0, picture.width, picture.height)
    for box in picture.boxes:
        for words in box.words:
            if not box.area.inner(2).holds(words.area):
                found.append(f"`{words.text}` leaves its box")
    texts = Index((w.area, w.text) for w in picture.words)
    for i, a in enumerate(picture.words):
        if a.size < 12:
            found.append(f"`{a.text}` is too small")
        if not page.inner(8).holds(a.area):
            found.append(f"`{a.text}` leaves the page")
        found += [f"`{a.text}` on `{text}`" for text in texts.meeting(a.area, after=i)]
    boxes = Index((box.area, box.names) for box in picture.boxes)
    ticks = Index((tick, "marks") for tick in picture.ticks)
    for a in picture.free_words:
        found += [f"`{a.text}` on {thing}" for thing in boxes.meeting(a.area)]
        found += [f"`{a.text}` on {thing}" for thing in ticks.meeting(a.area)]
        for y in picture.rules:
            if a.area.y1 < y < a.area.y2:
                found.append(f"`{a.text}` on the border of a level")
        for frame in picture.frames:
            if a.area.meets(frame) and not frame.holds(a.area):
                found.append(f"`{a.text}` on the border of a frame")
    return found


def _ways(picture: Picture) -> list[str]:
    found = []
    things = [(box.area.inner(1.5), str(box.names)) for box in picture.boxes]
    things += [(words.area, words.text) for words in picture.free_words]
    index = Index(things)
    for way in picture.ways:
        for part in way.parts:
            found += [f"{way.edges[:1]} goes through {name}" for name in index.meeting(part)]
            for y in picture.rules:
                if part.y1 == part.y2 and abs(part.y1 - y) < 3:
                    found.append(f"{way.edges[:1]} lies on the border of a level")
    return found + _along(picture, upright=True) + _along(picture, upright=False)


def _along(picture: Picture, upright: bool) -> list[str]:
    """Find straight parts of two ways that run along each other, nearer than 3.5 pixels."""
    parts = []
    for number, way in enumerate(picture.ways):
        for part in way.parts:
            if upright and part.x1 == part.x2:
                parts.append((part.x1, part.y1, part.y2, number))
            elif not upright and part.y1 == part.y2:
                parts.append((part.y1, part.x1, part.x2, number))
    parts.sort()
    found = []
    for i, (place, low, high, way) in enumerate(parts):
        for other_place, other_low, other_high, other in parts[i + 1 :]:
            if other_place - place >= 3.5:
                break
            if way != other and min(high, other_high) - max(low, other_low) > 1:
                a, b = picture.ways[way], picture.ways[other]
                found.append(f"{a.edges[:1]} lies on {b.edges[:1]}")
    return found
