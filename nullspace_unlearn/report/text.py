"""Names in columns: how wide a text is, and how to make it so wide."""

from __future__ import annotations

import unicodedata


def columns(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def padded(text: str, width: int) -> str:
    """The text, with blanks behind it up to a width in columns."""
    return text + " " * (width - columns(text))


def shortened(name: str, width: int) -> str:
    """A name without control characters, cut to a width in columns."""
    # Category C: escape sequences, newlines, marks that turn the direction of the text.
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029")
    if columns(name) <= width:
        return name
    taken, kept = 0, ""
    for c in name:
        taken += columns(c)
        if taken > width - 2:
            break
        kept += c
    return kept + ".."
