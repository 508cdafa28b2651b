"""Erasers: prototypes and a request in, an `Edit` out, in closed form. One method a file."""

from __future__ import annotations

from dataclasses import dataclass

from nullspace_unlearn.edit import Side
from nullspace_unlearn.erasers.avert import avert
from nullspace_unlearn.erasers.ccup import ccup
from nullspace_unlearn.erasers.gated import IMAGES, TEXT, Numbers, gated
from nullspace_unlearn.erasers.hull import hull
from nullspace_unlearn.erasers.leace import leace
from nullspace_unlearn.erasers.leave_out import leave_out
from nullspace_unlearn.erasers.neutral import NeutralNumbers, neutral
from nullspace_unlearn.erasers.neutral import choose as choose_neutral
from nullspace_unlearn.erasers.nullspace import nullspace
from nullspace_unlearn.erasers.two_sided import two_sided
from nullspace_unlearn.forget import Paradigm

__all__ = [
    "IMAGES",
    "METHODS",
    "TEXT",
    "Method",
    "NeutralNumbers",
    "Numbers",
    "avert",
    "ccup",
    "choose_neutral",
    "gated",
    "hull",
    "leace",
    "leave_out",
    "neutral",
    "nullspace",
    "two_sided",
]


@dataclass(frozen=True)
class Method:
    """What a user needs to know to pick a method by name.

    Attributes:
        paradigms: Which kinds of request it takes.
        sides: Which towers its edits are for.
        certified: Whether its edits carry a certificate.
        visual: Whether it takes visual prototypes.
    """

    paradigms: tuple[Paradigm, ...]
    sides: tuple[Side, ...] = ("visual", "text")
    certified: bool = False
    visual: bool = False


_ALL: tuple[Paradigm, ...] = ("global", "cell", "domain")

METHODS = {
    "hull": Method(("global",), ("visual",), certified=True),
    "avert": Method(("global",), ("text",)),
    "gated": Method(("cell", "domain"), visual=True),
    "two_sided": Method(("global",), ("visual",), certified=True, visual=True),
    "nullspace": Method(_ALL, visual=True),
    "ccup": Method(_ALL),
    "leace": Method(_ALL),
}
"""The methods by name; the first that takes a request's paradigm and side is the default for it."""
