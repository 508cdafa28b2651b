"""Colours of a heat map's cells, light and dark, with letters that can be read on each."""

from __future__ import annotations

import math
from collections.abc import Sequence

STEPS = 10
"""Shades of a change each way; a share has twice as many."""

# Blues for shares; vermilion for a loss and blue for a gain (Okabe and Ito), which every kind of
# colour blindness tells apart. The middle is nearly the page's own colour in either theme.
_SHARE = {
    "light": ("#F4F6F8", "#9CC4E4", "#2B7BBA", "#08365F"),
    "dark": ("#20262E", "#1F4E79", "#3F93D1", "#D3EBFF"),
}
_LOSS = {
    "light": ("#F4F4F2", "#F6C8A8", "#D55E00", "#8A3300"),
    "dark": ("#262A30", "#7A3D14", "#E07B39", "#FFC9A5"),
}
_GAIN = {
    "light": ("#F4F4F2", "#A9D3EE", "#0072B2", "#013F66"),
    "dark": ("#262A30", "#17506F", "#3F9FD6", "#BCE4FF"),
}
_INK = ("#000000", "#FFFFFF")


def share_step(value: float) -> str:
    """The class of a cell that holds a share.

    Args:
        value: From 0 to 1.
    """
    return f"s{round(2 * STEPS * min(max(value, 0.0), 1.0))}"


def change_step(value: float) -> str:
    """The class of a cell that holds a change; small ones are spread out, so that they show.

    Args:
        value: From -1 to 1.
    """
    step = round(STEPS * math.sqrt(min(abs(value), 1.0)))
    return f"{'l' if value < 0 else 'g'}{step}"


def rules(theme: str) -> str:
    """Style rules of every class of a cell.

    Args:
        theme: "light" or "dark".
    """
    shades = {f"s{i}": _between(_SHARE[theme], i / (2 * STEPS)) for i in range(2 * STEPS + 1)}
    for letter, stops in (("l", _LOSS[theme]), ("g", _GAIN[theme])):
        shades |= {f"{letter}{i}": _between(stops, i / STEPS) for i in range(STEPS + 1)}
    return "".join(
        f".{name}{{background:{paper};color:{ink_on(paper)}}}" for name, paper in shades.items()
    )


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, from 1 to 21, as WCAG 2.2 defines it.

    Args:
        one: "#RRGGBB".
        other: Likewise.
    """
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def ink_on(paper: str) -> str:
    """Black or white, whichever reads better: at least 4.5 to 1 on any colour.

    Args:
        paper: "#RRGGBB".
    """
    return max(_INK, key=lambda ink: contrast(ink, paper))


def _luminance(colour: str) -> float:
    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(part / 255) for part in _parts(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _between(stops: Sequence[str], share: float) -> str:
    place = share * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    both = zip(_parts(stops[low]), _parts(stops[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02X}" for a, b in both)


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
