"""A plot within a page: an SVG that takes the page's colours, and no part of which runs."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from nullspace_unlearn.report.page.blocks import Drawing
from nullspace_unlearn.report.picture import COLOURS

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_KEPT = {"svg", "g", "path", "rect", "text", "tspan", "use", "defs", "clipPath", "line", "circle"}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_BLUE = COLOURS[0].lower()  # the one that is too dark for a dark page


def inline(drawing: Drawing, folder: Path, key: str) -> str:
    """Draw it, and make it a part of a page.

    Black, white, greys and the blue become the theme's; all others are told apart in both.

    Args:
        drawing: The plot.
        folder: Where it may be written meanwhile.
        key: What its ids begin with, its own in the page.

    Returns:
        An `<svg>` element of shapes and letters alone.

    Raises:
        ValueError: As its `draw`.
    """
    file = folder / f"{key}.svg"
    drawing.draw(file)
    root = ElementTree.fromstring(file.read_bytes())
    _clean(root, key)
    for unit in ("width", "height"):
        root.attrib.pop(unit, None)
    root.set("role", "img")
    root.set("aria-label", f"{drawing.title}. {drawing.says}")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, key: str) -> None:
    for child in list(element):
        if str(child.tag).rpartition("}")[2] not in _KEPT:
            element.remove(child)
        else:
            _clean(child, key)
    for name, value in list(element.attrib.items()):
        if name.lower().startswith("on"):
            del element.attrib[name]
        elif name == "id":
            element.set(name, f"{key}-{value}")
        elif name.endswith("href"):
            element.set(name, f"#{key}-{value.removeprefix('#')}")
        else:
            linked = value.replace("url(#", f"url(#{key}-")
            themed = _COLOUR.sub(_themed, linked) if name == "style" else linked
            element.set(name, themed)


def _themed(match: re.Match[str]) -> str:
    """The theme's own colour in place of black, white, grey or blue."""
    red, green, blue = (int(match[0][i : i + 2], 16) for i in (1, 3, 5))
    if not red == green == blue:
        return "var(--blue)" if match[0].lower() == _BLUE else match[0]
    if red < 0x30:
        return "var(--ink)"
    if red < 0xA0:
        return "var(--faint)"
    return "var(--rule)" if red < 0xF8 else "var(--paper)"
