"""Where labels go in a plot: next to their dots, over nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FONT_PX = 12
_CHARACTER_PX = 6.6  # a cautious mean width at 12 px in the fonts that systems bring


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, x: float, y: float) -> bool:
        """Whether the place is in it."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    def within(self, other: Box) -> bool:
        """Whether no part of it is outside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


Line = tuple[float, float, float, float]


def text_width(text: str) -> float:
    """About how many pixels the text takes at the plot's font size."""
    return _CHARACTER_PX * len(text)


def place_label(
    text: str, x: float, y: float, nearest: int, area: Box, taken: Sequence[Box]
) -> Box | None:
    """The first free place around the dot at (x, y), ever further away; None where all are full."""
    width, height = text_width(text), FONT_PX + 3
    others = [box for box in taken if not box.holds(x, y)]
    for reach in (nearest, nearest + 4, 22, 32, 44, 58, 76):
        for step_x, step_y in (
            *((1, 0), (-1, 0), (0, -1), (0, 1)),
            *((0.7, -0.8), (-0.7, -0.8), (0.7, 0.8), (-0.7, 0.8)),
        ):
            centre_x = x + step_x * reach + (width / 2 if step_x > 0 else -width / 2) * bool(step_x)
            centre_y = y + step_y * (reach + height / 2)
            box = Box(
                centre_x - width / 2,
                centre_y - height / 2,
                centre_x + width / 2,
                centre_y + height / 2,
            )
            if (
                box.within(area)
                and not any(box.meets(other) for other in taken)
                and not _crosses(find_leader(x, y, box), others)
            ):
                return box
    return None


def find_leader(x: float, y: float, box: Box) -> Line | None:
    """The line from a dot to its label, where the label is not plainly next to it."""
    near_x = min(max(x, box.left), box.right)
    near_y = min(max(y, box.top), box.bottom)
    far = math.hypot(near_x - x, near_y - y) > 18
    return (x, y, near_x, near_y) if far else None


def _crosses(line: Line | None, boxes: Sequence[Box]) -> bool:
    if line is None:
        return False
    x, y, end_x, end_y = line
    steps = [index / 12 for index in range(1, 12)]
    path = [(x + t * (end_x - x), y + t * (end_y - y)) for t in steps]
    return any(box.holds(*place) for box in boxes for place in path)
