"""``colored_objects``: things of different colours, and the question for one's; corrupt prompts ask for another thing.

Source: the task of Srivastava et al., Beyond the Imitation Game (2022), reasoning about coloured objects, in the form that
Merullo et al., Circuit Component Reuse Across Tasks (2023), study; the sentences are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.sources.prompts import Draw, Prompt, Prompts
from ingest.sources.registry import SOURCES

_COLORS = (
    "red",
    "blue",
    "green",
    "black",
    "white",
    "yellow",
    "brown",
    "orange",
    "pink",
    "purple",
    "gray",
)
_THINGS = (
    "cup",
    "pen",
    "book",
    "ball",
    "key",
    "hat",
    "box",
    "plate",
    "ring",
    "bag",
    "lamp",
    "phone",
)


@SOURCES.register("colored_objects")
@dataclass(frozen=True, kw_only=True)
class ColoredObjects(Prompts):
    """Pairs of questions for a colour: one of three things and another."""

    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""
        colors, things = draw.several(_COLORS, 3), draw.several(_THINGS, 3)
        listed = [f"a {color} {thing}" for color, thing in zip(colors, things, strict=True)]
        one, other = draw.several(range(3), 2)
        frame = f"On the table there are {listed[0]}, {listed[1]} and {listed[2]}. The color of the {{}} is"
        return Prompt(
            frame.format(things[one]),
            frame.format(things[other]),
            f" {colors[one]}",
            f" {colors[other]}",
        )
