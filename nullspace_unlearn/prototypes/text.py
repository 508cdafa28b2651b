"""Text prototypes: prompts through the text tower, normalised, averaged, normalised."""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.prompts import cut_by
from nullspace_unlearn.linalg import as_float64, unit
from nullspace_unlearn.prototypes.text_cache import cache_in_use
from nullspace_unlearn.words import check_names, check_template


@runtime_checkable
class TextEncoder(Protocol):
    """What prompts are embedded with: a loaded `Clip`."""

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Embed prompts, one row each."""
        ...


def prompt_features(
    model: TextEncoder, names: Sequence[str], templates: Sequence[str], domain: str | None = None
) -> Float[Tensor, "names templates dim"]:
    """Unit features of every prompt, each distinct prompt encoded once.

    Within `cached_text` those that are known already are not encoded again.

    Args:
        model: The text encoder.
        names: Class names.
        templates: Templates holding `{class}`, and `{domain}` where `domain` is given.
        domain: The word for the domain.

    Returns:
        `[names, templates, dim]` float64 unit vectors, on the CPU, where edits are derived.

    Raises:
        ValueError: If the text tower gives NaN or Inf, or the model does not read a prompt as far
            as the end of the name.
    """
    check_fit(model, names, templates, domain)
    fields = {} if domain is None else {"domain": domain}
    prompts = [t.format(**{"class": name}, **fields) for name in names for t in templates]
    distinct = list(dict.fromkeys(prompts))
    position = {prompt: i for i, prompt in enumerate(distinct)}
    cache = cache_in_use()
    if cache is not None and isinstance(model, Clip):
        encoded = cache.encode(model, distinct)
    else:
        encoded = model.encode_text(distinct).cpu()
    features = unit(as_float64("text features", encoded))
    rows = features[[position[prompt] for prompt in prompts]]
    return rows.reshape(len(names), len(templates), -1)


def check_fit(
    model: TextEncoder, names: Sequence[str], templates: Sequence[str], domain: str | None = None
) -> None:
    """Refuse prompts that the text tower cuts before a name ends; warn of those cut behind it.

    Two names that are cut at the same place would be one vector.

    Args:
        model: The text encoder; one that is no `Clip` may cut as it likes.
        names: Class names.
        templates: Templates holding `{class}`, and `{domain}` where `domain` is given.
        domain: The word for the domain.

    Raises:
        ValueError: Naming a prompt that is cut too early.
    """
    behind = []
    for name, _, prompt, context, cut in _too_long(model, names, templates, domain):
        if cut:
            raise ValueError(
                f"the model reads {context} tokens, and prompt {_short(prompt)!r} is cut "
                f"before {_short(name)!r} ends: shorten the template or the name"
            )
        behind.append((prompt, context))
    if behind:
        warnings.warn(
            f"the model reads {behind[0][1]} tokens: the end of {_short(behind[0][0])!r}"
            + (f" and of {len(behind) - 1} other prompts" if len(behind) > 1 else "")
            + " is cut",
            stacklevel=3,
        )


def names_that_fit(
    model: TextEncoder, names: Sequence[str], templates: Sequence[str], domain: str | None = None
) -> tuple[str, ...]:
    """The names that the text tower reads to their end in every prompt.

    Args:
        model: The text encoder.
        names: Class names.
        templates: Templates holding `{class}`, and `{domain}` where `domain` is given.
        domain: The word for the domain.

    Returns:
        Those that `check_fit` does not refuse, in order.
    """
    long = _too_long(model, names, templates, domain)
    cut = {name for name, _, _, _, is_cut in long if is_cut}
    return tuple(name for name in names if name not in cut)


def templates_that_fit(
    model: TextEncoder, names: Sequence[str], templates: Sequence[str]
) -> tuple[str, ...]:
    """The templates in which the text tower reads every name to its end.

    Args:
        model: The text encoder.
        names: Class names.
        templates: Templates holding `{class}`.

    Returns:
        Those of which `check_fit` refuses none, in order.
    """
    long = _too_long(model, names, templates, None)
    cut = {template for _, template, _, _, is_cut in long if is_cut}
    return tuple(template for template in templates if template not in cut)


def _too_long(
    model: TextEncoder, names: Sequence[str], templates: Sequence[str], domain: str | None
) -> Iterator[tuple[str, str, str, int, bool]]:
    """Of each prompt that is cut: name, template, itself, context, whether a field is cut too."""
    if not isinstance(model, Clip):
        return
    words = {} if domain is None else {"domain": domain}
    pairs = [(name, template) for template in templates for name in names]
    prompts = [template.format(**{"class": name}, **words) for name, template in pairs]
    cut, context = cut_by(model.tokenizer, prompts)
    long = [i for i, is_cut in enumerate(cut) if is_cut]
    needed = [prompts[i][: len(prompts[i]) - _behind(pairs[i][1])] for i in long]
    for i, too_early in zip(long, cut_by(model.tokenizer, needed)[0], strict=True):
        yield *pairs[i], prompts[i], context, too_early


def _behind(template: str) -> int:
    """How many characters stand behind its last field."""
    tail, last_field, _, _ = list(string.Formatter().parse(template))[-1]
    return 0 if last_field is not None else len(tail)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-37:]}"


def class_prototypes(
    model: TextEncoder, names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "names dim"]:
    """The zero-shot classifier's rows: normalise each prompt, mean over templates, normalise.

    Args:
        model: The text encoder.
        names: Class names.
        templates: Templates holding `{class}`.

    Returns:
        `[names, dim]` float64 unit vectors.
    """
    return unit(prompt_features(model, names, templates).mean(1))


def checked_grid(
    why: str, classes: Sequence[str], domains: Mapping[str, str], templates: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names and templates of a grid of cells that are to be told apart.

    Args:
        why: Why at least two cells are needed, for the message.
        classes: Names of the classes.
        domains: Key of each domain -> the word prompts use for it.
        templates: Templates holding `{class}` and `{domain}`.

    Returns:
        Classes, words of the domains, templates.

    Raises:
        ValueError: If a name or template is malformed, or there are fewer than two cells or no
            template.
    """
    classes, words = tuple(classes), tuple(domains.values())
    check_names("class", classes)
    check_names("domain", tuple(domains))
    templates = tuple(check_template(template, ("class", "domain")) for template in templates)
    if len(classes) * len(words) < 2 or not templates:
        raise ValueError(
            f"{why}: expected at least 2 cells and 1 template, got {len(classes)} classes x "
            f"{len(words)} domains and {len(templates)} templates"
        )
    return classes, words, templates


def cell_prototypes(
    model: TextEncoder, names: Sequence[str], domains: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "names domains dim"]:
    """One prototype a cell, from prompts that name the domain.

    Args:
        model: The text encoder.
        names: Class names.
        domains: The words prompts use for the domains.
        templates: Templates holding `{class}` and `{domain}`.

    Returns:
        `[names, domains, dim]` float64 unit vectors.
    """
    grid = [unit(prompt_features(model, names, templates, word).mean(1)) for word in domains]
    return torch.stack(grid, 1)


# Nearer than this share of the usual distance, two domains are hardly told apart. Of domains that
# a model was trained on, eight sets of three or four under nsu-mini, two models of PACS and CLIP,
# all but one keep .75 at least (that one .68: a needless warning); words that a model never read
# keep .14 at most. Misspelt ones lie anywhere from .5 to 1 (CLIP's .64), so that this warns of some
# of them: where a text tower still reads the word, no distance says that it is wrong.
_HARDLY = 0.7


def hardly_told(cells: Float[Tensor, "names domains dim"]) -> list[tuple[int, int]]:
    """Domains that a text tower hardly tells from another: a misspelt word, say.

    Args:
        cells: `[names, domains, dim]`, as `cell_prototypes` gives them.

    Returns:
        For each such domain its place, and that of the nearest other; none of fewer than 3.
    """
    means = unit(cells.mean(0))
    many = len(means)
    if many < 3:
        return []
    apart = torch.cdist(means, means)
    pairs = apart[torch.ones_like(apart).triu(1).bool()]
    nearest = apart.masked_fill(torch.eye(many, dtype=torch.bool), torch.inf).min(1)
    low = nearest.values < _HARDLY * pairs.median()
    return [(i, int(nearest.indices[i])) for i in low.nonzero()[:, 0].tolist()]


def taken_for(
    embeddings: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    cells: Float[Tensor, "names domains dim"],
) -> list[tuple[int, int]]:
    """Domains whose images the model takes for another's: folders that were swapped, say.

    An image is compared with the prompts of its class in every domain, less what these score on the
    images of all domains, each counting alike: some words score higher on any image.

    Args:
        embeddings: Of some images, of every domain.
        labels: Their classes.
        domains: Their domains.
        cells: As `cell_prototypes` gives them.

    Returns:
        Each domain with more than half of its images taken for one other, and that one.
    """
    scores = (unit(as_float64("embeddings", embeddings))[:, None] * cells[labels]).sum(-1)
    shown = domains.unique()
    usual = torch.stack([scores[domains == d].mean(0) for d in shown]).mean(0)
    best = (scores - usual).argmax(-1)
    found = []
    for d in shown.tolist():
        other, many = best[domains == d].unique(return_counts=True)
        most = int(many.argmax())
        if int(other[most]) != d and 2 * int(many[most]) > int(many.sum()):
            found.append((d, int(other[most])))
    return found
