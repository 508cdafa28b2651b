"""The requests of a sweep: one of each class and domain that there are images of, or a file's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.evaluate.compare import EVERYWHERE
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import resolved
from nullspace_unlearn.strict import plain_yaml
from nullspace_unlearn.words import Words

_EACH = re.compile(r"each(?::(.*))?")


def each(
    classes: Sequence[str], domains: Sequence[str], source: Source, seed: int = 0
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The classes and domains of each request: those given, or one request of each.

    Args:
        classes: Names; or "each" alone for one request of every class that there are images of,
            "each:N" for N of them.
        domains: The same of domains, each with each.
        source: The images.
        seed: Which are drawn.

    Returns:
        Classes and domains, request by request.

    Raises:
        ValueError: If "each" stands beside other names, there is none, or there are fewer than N.
    """
    present, words = source.counts > 0, tuple(source.words)
    some = _each("--class", classes, source.classes, present.any(1), seed)
    places = _each("--domain", domains, words, present.any(0), seed)
    return [(one, where) for one in some for where in places]


def _each(
    option: str,
    given: Sequence[str],
    names: Sequence[str],
    seen: Bool[Tensor, " names"],
    seed: int,
) -> list[tuple[str, ...]]:
    """What one request names, or what each of several does."""
    matches = [_EACH.fullmatch(name) for name in given]
    if not any(matches):
        return [tuple(given)]
    if len(given) > 1:
        raise ValueError(f"{option} each stands for every one: leave out the other {option}")
    # Two classes of one name go together; without domains there is a column of no name.
    here = zip(names, seen.tolist(), strict=False)
    pool = list(dict.fromkeys(name for name, shown in here if shown))
    if not pool:
        raise ValueError(f"{option} each: the data names none")
    match = matches[0]
    if match is None or match[1] is None:
        return [(name,) for name in pool]
    number = int(match[1]) if match[1].isdecimal() else 0
    if not 1 <= number <= len(pool):
        raise ValueError(f"{option} each:N takes N from 1 to {len(pool)}, got {match[1]!r}")
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:number]
    return [(pool[i],) for i in drawn.sort().values.tolist()]


def read_requests(file: str) -> list[Forget]:
    """The requests of a YAML or JSON file: a list, each with classes, domains, or both.

    Args:
        file: Its path.

    Raises:
        ValueError: Naming the request and what is wrong with it.
    """
    listed = plain_yaml(file)
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"requests {file!r} must be a list of requests with classes or domains")
    requests = []
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict) or not set(one) <= {"classes", "domains"}:
            raise ValueError(
                f"request {number} of {file!r} must have classes, domains or both, and nothing else"
            )
        for what, value in one.items():
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ValueError(f"{what} of request {number} of {file!r} must be a list of names")
        try:
            requests.append(Forget(**one))
        except ValueError as error:
            raise ValueError(f"request {number} of {file!r}: {error}") from None
    return requests


def shown(requests: Sequence[Forget], words: Words, source: Source) -> list[Forget]:
    """The requests with their aliases and domain keys, of several those that there are images of.

    Args:
        requests: From `each`.
        words: Classes, domains and other names.
        source: The images.

    Raises:
        ValueError: As `plans.resolved`.
    """
    known = [resolved(request, words) for request in requests]
    if len(known) == 1:
        return known
    present, columns = source.counts > 0, tuple(source.words) or EVERYWHERE
    return [one for one in known if (one.mask(source.classes, columns) & present).any()]


def words_of(
    clip: Clip | None,
    source: Source,
    given: Mapping[str, str] | None = None,
    templates: Sequence[str] = (),
) -> Words:
    """Names as the data give them, and how the model's folder and the user say them.

    Args:
        clip: The model; None where features bring their text.
        source: The images.
        given: Domain -> the word that prompts use for it.
        templates: Class templates; absent: the data's, else the model's own.

    Raises:
        ValueError: If `given` names a domain that the data have not.
    """
    own, given, keys = (clip.words if clip else None) or Words(), given or {}, source.words
    unknown = [key for key in given if key not in keys]
    if unknown:
        raise ValueError(
            f"--domain-word names {', '.join(map(repr, unknown))}, which is not among the data's "
            f"domains: {', '.join(keys) or 'none'}"
        )
    return Words(
        classes=tuple(dict.fromkeys(source.classes)),
        domains={key: given.get(key, own.domains.get(key, word)) for key, word in keys.items()},
        class_templates=tuple(templates) or source.templates or own.class_templates,
        cell_templates=own.cell_templates,
        aliases=own.aliases,
    )
