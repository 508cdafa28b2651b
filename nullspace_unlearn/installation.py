"""What is installed, of what this package needs, and what each extra lacks."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

_NAME = "nullspace-unlearn"
_FOR_DEVELOPING = ("test", "docs", "dev")
"""Extras that those who use it need not have."""


@dataclass(frozen=True)
class Needed:
    """A package that is needed.

    Attributes:
        name: Its name.
        needs: Which versions, such as ">=2.6".
        version: Which is there; None for none.
        extra: The extra that needs it; empty where everything does.
    """

    name: str
    needs: str
    version: str | None
    extra: str = ""

    @property
    def fits(self) -> bool:
        """Whether a version is there that will do."""
        wanted = Requirement(f"{self.name}{self.needs}").specifier
        return self.version is not None and wanted.contains(self.version, prereleases=True)

    @property
    def said(self) -> str:
        """In a few words."""
        if self.version is None:
            return f"{self.name} is missing (needs {self.needs or 'any version'})"
        return f"{self.name} {self.version}" + ("" if self.fits else f" is too old: {self.needs}")


def needed() -> tuple[Needed, ...]:
    """Every package that is needed, and by each extra, as this package's metadata say.

    Raises:
        RuntimeError: If it is not installed, so that it has none.
    """
    found = [_looked_up(one, "") for one in _requirements("")]
    known = {one.name for one in found}
    extras = metadata.metadata(_NAME).get_all("Provides-Extra") or []
    for extra in sorted({*extras} - {*_FOR_DEVELOPING}):
        own = [_looked_up(one, extra) for one in _requirements(extra)]
        found += [one for one in own if one.name not in known]
    return tuple(found)


def python() -> str:
    """The Python that runs, and on what."""
    return f"{platform.python_version()} on {platform.platform()}"


def _requirements(extra: str) -> list[Requirement]:
    """What an extra needs beyond the rest; extras that it names are read as it is."""
    try:
        lines = metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"{_NAME} is not installed: pip install -e . does that") from None
    given = [Requirement(line) for line in lines]
    found = []
    for one in given:
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        if extra and always or not (always or one.marker and one.marker.evaluate({"extra": extra})):
            continue
        if one.name == _NAME:
            found += [other for inner in one.extras for other in _requirements(inner)]
        else:
            found.append(one)
    return found


def _looked_up(one: Requirement, extra: str) -> Needed:
    try:
        version = metadata.version(one.name)
    except metadata.PackageNotFoundError:
        version = None
    return Needed(one.name, str(one.specifier), version, extra)
