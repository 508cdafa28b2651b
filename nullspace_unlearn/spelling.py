"""How messages spell names, and what they say to someone who got one wrong."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The question to ask after an unknown name, to be appended to it.

    Args:
        given: The unknown name.
        known: The names that it may have been meant to be.

    Returns:
        " (did you mean 'name'?)"; empty where no name is near.
    """
    near = _nearest(given, known)
    return f" (did you mean {near!r}?)" if near else ""


def instead(given: str, known: Iterable[str]) -> str:
    """The nearest of the names that are known, or a list of them where none is near.

    Args:
        given: The unknown name.
        known: The names that it may have been meant to be.

    Returns:
        "did you mean 'name'?" or "allowed: a, b".
    """
    known = list(known)
    near = _nearest(given, known)
    return f"did you mean {near!r}?" if near else f"allowed: {listed(known)}"


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names with commas between them.

    Args:
        names: Names.
        most: After how many the rest is only counted.

    Returns:
        For example "a, b, ... (30 in all)".
    """
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    """A text with what would steer a terminal, or break a line, spelt out.

    Args:
        text: Any text.

    Returns:
        The text, control characters, line breaks, half characters and marks that turn the direction
        of what follows as Python escapes; what shows, and what joins emoji, as it is.
    """

    def steers(c: str) -> bool:
        return c in _TURNS or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")

    return "".join(c.encode("unicode_escape").decode() if steers(c) else c for c in text)


def _nearest(given: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(given, list(known), 1)
    return found[0] if found else None
