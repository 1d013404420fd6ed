"""How each mixer looks everywhere: a colour, a shape and a letter, so that none has to carry
the meaning alone.

Colours are Okabe and Ito's (jfly.uni-koeln.de/color, 2008), told apart with any colour vision;
grey stands in for their black, which a dark page would swallow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.mixers import get_mixer

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
YELLOW = "#F0E442"
GREY = "#8A8A8A"

NEUTRAL = "#7C7C7C"
"""Lines and small labels: 4.2:1 on white, 4.5:1 on the dark page."""

OUTLINE = "#6B6B6B"
"""Around every mark: 5.3:1 on white, 3.6:1 on the dark page, so that yellow shows on both."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """`colour` as #RRGGBB, `shape` a Vega symbol, `letter` the mixer's in a layer pattern."""

    colour: str
    shape: str
    letter: str
    title: str

    @property
    def ink(self) -> str:
        """Black or white, whichever reads better on the colour (WCAG relative luminance)."""
        return "#FFFFFF" if luminance(self.colour) < 0.179 else "#000000"


_LOOKS = {
    "full_attention": (BLUE, "circle"),
    "sliding_window": (ORANGE, "square"),
    "linear_attention": (PURPLE, "triangle-down"),
    "lightning": (YELLOW, "triangle-up"),
    "gated_deltanet": (GREEN, "diamond"),
    "kda": (SKY, "cross"),
    "mamba2": (VERMILLION, "triangle-right"),
    "mla": (GREY, "triangle-left"),
}


def style_of(mixer: str) -> Style:
    """The look of a registered mixer; a mixer without one of its own is a grey circle.

    Raises: UnknownName, listing the registered mixers.
    """
    known = get_mixer(mixer)
    colour, shape = _LOOKS.get(mixer, (GREY, "circle"))
    return Style(colour=colour, shape=shape, letter=known.letter, title=known.title)


def styles_of(mixers: Iterable[str]) -> dict[str, Style]:
    """The looks of these mixers, in the order of the registry's legend."""
    wanted = set(mixers)
    ordered = [m for m in _LOOKS if m in wanted]
    return {m: style_of(m) for m in [*ordered, *sorted(wanted - set(ordered))]}


def luminance(colour: str) -> float:
    """Relative luminance of #RRGGBB, 0 to 1 (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
