"""From the requests of a recipe to what is forgotten, one choice at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from nullspace_unlearn.bench.datasets import Pool
from nullspace_unlearn.bench.recipe import Request
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.spelling import listed

_MOST = 10_000


def choices(request: Request, pool: Pool) -> list[Forget]:
    """What is forgotten under one request of a recipe.

    Classes are chosen among those with images in every domain that they are to go in or stay in, so
    that every figure can be told.

    Args:
        request: The request.
        pool: The data set that it speaks of.

    Returns:
        The choices, in an order that depends on the recipe and the names alone.

    Raises:
        ValueError: If it names what the data lack, or asks for more choices than there are.
    """
    rows = zip(pool.classes, pool.covered.all(1).tolist(), strict=True)
    lacking = {name for name, everywhere in rows if not everywhere}
    # Two classes of one name go together.
    full = [name for name in dict.fromkeys(pool.classes) if name not in lacking]
    classes = _among("class", request.classes, pool.classes, full)
    domains = _among("domain", request.domains, tuple(pool.domains), tuple(pool.domains))
    if request.choose == "together":
        return [Forget(request.classes, request.domains)]
    if request.kind == "global":
        return [Forget(names) for names in _sets(request, classes)]
    if request.kind == "domain":
        if request.size >= len(pool.domains):
            raise ValueError(
                f"{request.size} of {len(pool.domains)} domains cannot go at once: some must stay"
            )
        return [Forget(domains=names) for names in _sets(request, domains)]
    return _cells(request, classes, domains)


def _among(
    what: str, asked: Sequence[str], known: Sequence[str], able: Sequence[str]
) -> Sequence[str]:
    for name in asked:
        if name not in known:
            raise ValueError(f"the data have no {what} {name!r}; they have {listed(known)}")
        if name not in able:
            raise ValueError(f"{what} {name!r} has no image to report on in some domain")
    return asked or able


def _sets(request: Request, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of names: all of the size asked for, or some at random."""
    there = math.comb(len(names), request.size)
    if request.choose == "each":
        if not 0 < there <= _MOST:
            raise ValueError(
                f"there are {there} choices of {request.size} among {len(names)}: choose a number "
                "of them at random"
            )
        return list(combinations(names, request.size))
    assert isinstance(request.choose, int)  # `choices` has dealt with "together"
    if request.choose > there:
        raise ValueError(
            f"{request.choose} choices of {request.size} among {len(names)} are asked for, and "
            f"there are {there}"
        )
    random = np.random.default_rng(request.seed)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < request.choose:
        drawn = sorted(random.choice(len(names), request.size, replace=False).tolist())
        found[tuple(names[i] for i in drawn)] = None
    return list(found)


def _cells(request: Request, classes: Sequence[str], domains: Sequence[str]) -> list[Forget]:
    """Classes in one domain."""
    if request.choose == "each":
        sets = _sets(request, classes)
        return [Forget(names, (domain,)) for names in sets for domain in domains]
    assert isinstance(request.choose, int)
    there = math.comb(len(classes), request.size) * len(domains)
    if request.choose > there:
        raise ValueError(f"{request.choose} cells are asked for, and there are {there}")
    random = np.random.default_rng(request.seed)
    found: dict[tuple[tuple[str, ...], str], None] = {}
    while len(found) < request.choose:
        drawn = sorted(random.choice(len(classes), request.size, replace=False).tolist())
        domain = domains[int(random.integers(len(domains)))]
        found[tuple(classes[i] for i in drawn), domain] = None
    return [Forget(names, (domain,)) for names, domain in found]
