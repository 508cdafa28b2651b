"""`Forget`: which cells of the class x domain grid go, which stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.words import check_names, same_name

Paradigm = Literal["global", "cell", "domain"]


@dataclass(frozen=True)
class Forget:
    """A request: classes everywhere, classes in some domains, or whole domains.

        Forget(classes=["car"])                        the class everywhere
        Forget(classes=["car"], domains=["sketch"])    the class in those domains only
        Forget(domains=["sketch"])                     the whole domains

    Attributes:
        classes: Names to forget; empty means every class (then `domains` must be given).
        domains: Domains to forget them in; empty means everywhere.
        keep: Names that must stay, joined to the retained vocabulary.
        aliases: Forgotten class -> further names of it, forgotten with it.
    """

    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("classes", "domains", "keep"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ValueError(
                    f"{name} must be a list of names, got the string {value!r}: write "
                    f"{name}=[{value!r}]"
                )
            object.__setattr__(self, name, tuple(value))
        aliases = {
            name: (others,) if isinstance(others, str) else tuple(others)
            for name, others in self.aliases.items()
        }
        object.__setattr__(self, "aliases", MappingProxyType(aliases))
        if not self.classes and not self.domains:
            raise ValueError("nothing to forget: give classes, domains, or both")
        check_names("class", self.names)
        check_names("domain", self.domains)
        check_names("kept class", self.keep)
        forgotten = {same_name(name): name for name in self.names}
        for name in self.keep:
            if same_name(name) in forgotten:
                raise ValueError(f"{name!r} is both forgotten and kept; it can only be one of them")
        for name in aliases:
            if name not in self.classes:
                raise ValueError(
                    f"alias given for {name!r}, which is not forgotten; forgotten: "
                    f"{', '.join(self.classes) or 'none by name'}"
                )

    @property
    def paradigm(self) -> Paradigm:
        """Which of the three kinds of request this is."""
        if not self.domains:
            return "global"
        return "cell" if self.classes else "domain"

    @property
    def names(self) -> tuple[str, ...]:
        """Every forgotten name: the classes, then their aliases."""
        return self.classes + tuple(a for name in self.classes for a in self.aliases.get(name, ()))

    def mask(
        self, classes: Sequence[str], domains: Sequence[str]
    ) -> Bool[Tensor, "classes domains"]:
        """The request as a grid: true where a cell is forgotten.

        Args:
            classes: All class names, in the grid's row order.
            domains: All domain names, in its column order.

        Returns:
            `[classes, domains]` boolean grid.

        Raises:
            ValueError: If the request names a class or domain that is not there.
        """
        for what, asked, known in (
            ("class", self.classes, classes),
            ("domain", self.domains, domains),
        ):
            unknown = [name for name in asked if name not in known]
            if unknown:
                raise ValueError(
                    f"unknown {what} {', '.join(map(repr, unknown))}; known: {', '.join(known)}"
                )
        rows = torch.tensor([not self.classes or name in self.classes for name in classes])
        columns = torch.tensor([not self.domains or name in self.domains for name in domains])
        return rows[:, None] & columns[None, :]

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `Forget(**values)` makes an equal request."""
        return {
            "classes": list(self.classes),
            "domains": list(self.domains),
            "keep": list(self.keep),
            "aliases": {name: list(others) for name, others in self.aliases.items()},
        }


def groups(
    mask: Bool[Tensor, "*requests classes domains"],
) -> list[Bool[Tensor, "*requests classes domains"]]:
    """The four groups of cells that a request is judged by.

    Args:
        mask: `[*requests, classes, domains]`, True where a cell is forgotten.

    Returns:
        The forgotten cells, the same classes in other domains, other classes in the same domains,
        and the rest; any of the last three may be empty.
    """
    row, column = mask.any(-1, keepdim=True), mask.any(-2, keepdim=True)
    return [mask, ~mask & row, ~row & column, ~row & ~column]


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of numbers that are not negative; 0 if one of them is 0.

    Args:
        values: At least one number.

    Returns:
        The mean.
    """
    return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0
