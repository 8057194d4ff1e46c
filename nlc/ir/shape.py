"""Named axes and shapes.

A shape is a tuple of axes. Batch and time are never part of a shape: an expression has the shape
it has for one token of one sequence; executors put further axes in front.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Axis:
    """One axis: its dim's name (or the product it was written as) and its size.

    `free` marks the axis made by `flat`, `concat` or `slice`, which fits any axis of its size.
    `role` is `in` or `out` for the axes of a matrix, so that a square one keeps them apart.
    """

    name: str
    size: int
    free: bool = False
    role: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"{self.name}:{self.size}"

    def fits(self, other: Axis) -> bool:
        """Say whether the two may be the same axis: by name, or by size where one is free."""
        if self.free or other.free:
            return self.size == other.size
        return self.name == other.name


Shape = tuple[Axis, ...]

# what `unsqueeze` inserts: it broadcasts against anything
ONE = Axis("1", 1)


def show(shape: Shape) -> str:
    """Write a shape as the language does: `[heads, d_k]`."""
    return "[" + ", ".join(axis.name for axis in shape) + "]"


def sizes(shape: Shape) -> tuple[int, ...]:
    """Return the sizes alone."""
    return tuple(axis.size for axis in shape)


def count(shape: Shape) -> int:
    """Return the number of entries."""
    total = 1
    for axis in shape:
        total *= axis.size
    return total
