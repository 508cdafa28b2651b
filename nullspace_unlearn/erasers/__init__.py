"""Erasers: prototypes and a request in, an `Edit` out, in closed form. One method a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullspace_unlearn.erasers.avert import METHOD as _avert
from nullspace_unlearn.erasers.avert import avert
from nullspace_unlearn.erasers.ccup import METHOD as _ccup
from nullspace_unlearn.erasers.ccup import ccup
from nullspace_unlearn.erasers.gated import IMAGES, TEXT, Numbers, gated
from nullspace_unlearn.erasers.gated import METHOD as _gated
from nullspace_unlearn.erasers.hull import METHOD as _hull
from nullspace_unlearn.erasers.hull import hull
from nullspace_unlearn.erasers.leace import METHOD as _leace
from nullspace_unlearn.erasers.leace import leace
from nullspace_unlearn.erasers.leave_out import leave_out
from nullspace_unlearn.erasers.level import METHOD as _level
from nullspace_unlearn.erasers.level import level
from nullspace_unlearn.erasers.method import Given, Method, Seen
from nullspace_unlearn.erasers.neutral import METHOD as _neutral
from nullspace_unlearn.erasers.neutral import NeutralNumbers, neutral
from nullspace_unlearn.erasers.neutral import choose as choose_neutral
from nullspace_unlearn.erasers.nullspace import METHOD as _nullspace
from nullspace_unlearn.erasers.nullspace import nullspace
from nullspace_unlearn.erasers.two_sided import METHOD as _two_sided
from nullspace_unlearn.erasers.two_sided import two_sided

__all__ = [
    "IMAGES",
    "METHODS",
    "TEXT",
    "Given",
    "Method",
    "NeutralNumbers",
    "Numbers",
    "Seen",
    "avert",
    "ccup",
    "choose_neutral",
    "gated",
    "hull",
    "leace",
    "leave_out",
    "level",
    "neutral",
    "nullspace",
    "two_sided",
]

_ALL = (_hull, _avert, _neutral, _gated, _two_sided, _level, _nullspace, _ccup, _leace)

METHODS: Mapping[str, Method[Any]] = {method.name: method for method in _ALL}
"""The methods by name; the first that takes a request's paradigm and side is the default for it."""
