"""From a request to an edit: names, prompts, prototypes, eraser."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn import certificate, erasers
from nullspace_unlearn.certificate import Certificate
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import SPACES, Edit, Side, Space
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import (
    DOMAIN_WORDS,
    Synthesis,
    Visual,
    cell_prototypes,
    class_prototypes,
    from_pictures,
    imagenet_names,
    near_synonyms,
    synthesise,
)
from nullspace_unlearn.spelling import listed
from nullspace_unlearn.words import Words, check_names

MAX_STRENGTH = 2.0

# A bundled vocabulary is cut to this many names (the nearest to what is forgotten) where every one
# of them needs a prompt for each domain: far names bear no risk and cost as much.
_NEAREST = 64


@dataclass(frozen=True, eq=False)
class Plan:
    """A request resolved against a model: what will be forgotten, what stays, and by what words.

    Attributes:
        forget: The request, its aliases filled in and its domains given by their keys.
        keep: Names that stay.
        synonyms: Names left out of a bundled vocabulary because to the model they mean much the
            same as something forgotten; they go with it.
        words: Classes (forgotten and kept), domains and templates in use.
        method: The eraser.
        side: The tower to edit.
        forget_rows: `[m, dim]` text prototypes of the forgotten names, float64.
        keep_rows: `[n, dim]` text prototypes of the kept names.
    """

    forget: Forget
    keep: tuple[str, ...]
    synonyms: tuple[str, ...]
    words: Words
    method: str
    side: Side
    forget_rows: Float[Tensor, "m dim"]
    keep_rows: Float[Tensor, "n dim"]

    @property
    def mask(self) -> Bool[Tensor, "classes domains"]:
        """The request over `words.classes` and `words.domains`."""
        return self.forget.mask(self.words.classes, tuple(self.words.domains))


def plan(
    clip: Clip,
    forget: Forget,
    *,
    classes: Sequence[str] | None = None,
    domains: Mapping[str, str] | None = None,
    templates: Sequence[str] | None = None,
    method: str | None = None,
    side: Side = "visual",
) -> Plan:
    """Resolve a request: vocabulary, aliases, near-synonyms, domain words, method.

    Args:
        clip: The model.
        forget: What to forget and what to keep.
        classes: The names whose recognition must stay (and those forgotten, in any order). Absent:
            those the model's folder carries, else ImageNet's less near-synonyms of what goes.
        domains: Domain key (a folder name, say) -> word in prompts. Absent: those the model's
            folder carries, else photo, painting, cartoon, sketch and any that the request names.
        templates: Class templates in place of the folder's or the default ones.
        method: The eraser's name; absent means the first one that takes such a request.
        side: The tower whose projection the edit will be folded into.

    Returns:
        The plan; nothing has been edited.

    Raises:
        ValueError: If a name is unknown, empty or given twice, nothing is kept, or the method does
            not take such a request.
    """
    base = clip.words or Words()
    words = Words(
        classes=tuple(classes) if classes is not None else base.classes,
        domains=_domains(base, domains, forget),
        class_templates=tuple(templates) if templates else base.class_templates,
        cell_templates=base.cell_templates,
        aliases=base.aliases,
    )
    bundled = not words.classes
    forget = with_aliases(with_domain_keys(forget, words), words)
    method = _method(method, forget, side)
    if bundled and not forget.classes:
        raise ValueError(
            "to forget a whole domain, say which classes the model must go on telling apart in the "
            "others: none are given, and the model's folder carries none"
        )
    names = words.classes or imagenet_names()
    if not bundled:
        _check_known(forget.classes, names)
    gone = {name.casefold() for name in forget.names}
    candidates = tuple(dict.fromkeys(n for n in (*names, *forget.keep) if n.casefold() not in gone))
    if not candidates:
        raise ValueError("nothing is kept: the class list holds only what is forgotten")
    forget_rows = class_prototypes(clip, forget.names or names, words.class_templates)
    keep_rows = class_prototypes(clip, candidates, words.class_templates)
    synonyms = torch.zeros(len(candidates), dtype=torch.bool)
    stays = ~synonyms
    if bundled:
        asked = torch.tensor([name in forget.keep for name in candidates])
        synonyms = near_synonyms(forget_rows, keep_rows) & ~asked
        stays = ~synonyms
        if forget.domains:  # every name will need a prompt a domain
            nearness = (keep_rows @ forget_rows.mT).amax(-1).masked_fill(synonyms, -torch.inf)
            nearest = nearness.topk(min(_NEAREST, len(nearness))).indices
            stays &= asked.index_fill(0, nearest, True)
    keep = _where(candidates, stays)
    in_use = {*keep, *forget.classes}
    ordered = (name for name in names if name in in_use)
    return Plan(
        forget=forget,
        keep=keep,
        synonyms=_where(candidates, synonyms),
        words=replace(words, classes=tuple(dict.fromkeys((*ordered, *forget.classes, *keep)))),
        method=method,
        side=side,
        forget_rows=forget_rows,
        keep_rows=keep_rows[stays],
    )


def erase(
    clip: Clip,
    forget: Forget | Plan,
    *,
    strength: float = 1.0,
    visual: Visual | None = None,
    space: Space = "embedding",
    **choices: Any,
) -> Edit:
    """Make the edit that forgets what is asked: prompts, prototypes, eraser.

    Args:
        clip: The model; it is not changed (see `Edit.fold`).
        forget: The request, or a plan made from it.
        strength: Scales the edit; 1 is the edit as derived, at most 2.
        visual: What images of each cell look like to the model, for the methods that take it
            (`Method.visual`); from `synthesise_for`, or `prototypes.from_images`. Absent: text
            alone.
        space: What `gated` reads from: the "embedding", the "hidden" feature that enters the
            final projection, or one step deeper what enters the last MLP's output layer, "mlp".
        **choices: As for `plan`: classes, domains, templates, method, side.

    Returns:
        An edit, float64 on the CPU; its provenance tells how it came to be.

    Raises:
        ValueError: If the request cannot be met; see `plan` and the erasers.
    """
    if not 0 < strength <= MAX_STRENGTH:
        raise ValueError(f"strength must lie in (0, {MAX_STRENGTH:g}], got {strength}")
    if isinstance(forget, Plan) and choices:
        raise ValueError(f"a plan is already made; {', '.join(choices)} go to plan()")
    made = forget if isinstance(forget, Plan) else plan(clip, forget, **choices)
    _check_space(made, visual, space)
    edit = _erase(clip, made, visual, space)
    provenance = {
        **edit.provenance,
        "strength": strength,
        "request": made.forget.to_json(),
        "kept": list(made.keep),
        "near_synonyms_not_kept": list(made.synonyms),
        "domains": dict(made.words.domains),
        "templates": made.words.to_json()["templates"],
        "prototypes": "prompts" if visual is None else dict(visual.features.provenance),
        "space": space,
    }
    scaled = edit if strength == 1 else edit.scale(strength)
    return Edit(scaled.read, scaled.write, scaled.space, provenance)


def cells_needed(made: Plan) -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes and domains that visual prototypes must show for a request.

    Args:
        made: The plan.

    Returns:
        Class names, and domain key -> word. For classes forgotten everywhere under a large
        vocabulary these are the forgotten classes and the kept names nearest to them, in the first
        domain.
    """
    classes, domains = made.words.classes, dict(made.words.domains)
    if made.forget.paradigm == "global" and len(classes) > _NEAREST:
        nearness = (made.keep_rows @ made.forget_rows.mT).amax(-1)
        near = {made.keep[i] for i in nearness.topk(min(_NEAREST, len(made.keep))).indices.tolist()}
        classes = tuple(n for n in classes if n in near or n in made.forget.classes)
        domains = dict([next(iter(domains.items()))])
    return classes, domains


def cells_of_images(
    made: Plan, classes: Sequence[str], domains: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which cells of some real images a request is to look at.

    Args:
        made: The plan.
        classes: Classes that there are images of.
        domains: Domains that there are images of.

    Returns:
        Class names and domain keys. A request in some domains needs every cell of its plan; a class
        forgotten everywhere makes do with the names there are, in the domains there are.

    Raises:
        ValueError: If there are no images of a class to be forgotten everywhere, or none of a name
            that stays.
    """
    if made.forget.paradigm != "global":
        needed, words = cells_needed(made)
        return needed, tuple(words)
    both = tuple(name for name in made.words.classes if name in classes)
    missing = [name for name in made.forget.classes if name not in both]
    if missing or len(both) == len(made.forget.classes):
        what = ", ".join(map(repr, missing)) or "any name that stays"
        raise ValueError(f"there is no image of {what}; there are images of {listed(classes)}")
    return both, tuple(domains)


def synthesise_for(
    clip: Clip,
    made: Plan,
    synthesis: Synthesis | None = None,
    *,
    cache: str | Path | None = None,
    space: Space = "embedding",
    quiet: bool = False,
) -> Visual:
    """Visual prototypes of all cells that a request needs, made from the model alone.

    Args:
        clip: The model.
        made: The plan.
        synthesis: The numbers of the synthesis.
        cache: As for `prototypes.synthesise`.
        space: What an edit will read of them; "mlp" looks at every picture once more.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        The prototypes. A warning names cells that were not reached, if they are kept ones.

    Raises:
        ValueError: As `prototypes.synthesise`; and if no picture of some forgotten cell is one to
            the model, since an edit made from it would forget something else.
    """
    classes, domains = cells_needed(made)
    found = synthesise(
        clip, classes, domains, made.words.cell_templates, synthesis, cache=cache, quiet=quiet
    )
    mask = made.forget.mask(classes, tuple(domains))
    reached = found.reached.reshape(*mask.shape, -1).any(-1)
    missed = (mask & ~reached).nonzero().tolist()
    keys = tuple(domains)
    if missed:
        names = ", ".join(f"{classes[c]}/{keys[d]}" for c, d in missed[:5])
        raise ValueError(
            f"the model takes no synthesised picture for its own cell in {len(missed)} of the "
            f"forgotten cells: {names}; give real images, or make do with text prototypes"
        )
    if (line := found.warning()) is not None:
        warnings.warn(line, stacklevel=2)
    return from_pictures(clip, found, space=space)


def _check_space(made: Plan, visual: Visual | None, space: Space) -> None:
    method = METHODS[made.method]
    if visual is not None and not method.visual:
        able = [name for name, other in METHODS.items() if other.visual]
        raise ValueError(
            f"method {made.method!r} takes no visual prototypes; those that do: {', '.join(able)}"
        )
    if made.method == "two_sided" and visual is None:
        raise ValueError("two_sided forgets images too and needs visual prototypes")
    if space not in SPACES:
        raise ValueError(f"space is {space!r}; allowed: {', '.join(SPACES)}")
    if space == "embedding":
        return
    if made.method != "gated":
        raise ValueError(f"only gated reads the {space} feature; the method here is {made.method}")
    if made.side != "visual":
        raise ValueError(f"the {space} feature is the image tower's: use the visual side")
    if visual is None:
        raise ValueError(f"only images show what the {space} feature is: give visual prototypes")


def _erase(clip: Clip, made: Plan, visual: Visual | None, space: Space) -> Edit:
    seen = None
    if visual is not None:
        shown = visual.features
        seen = visual.on(*cells_of_images(made, shown.class_names, shown.domain_names))
    if made.method == "gated":
        return _gated(clip, made, seen, space)
    forgotten, kept = made.forget_rows, made.keep_rows
    if made.forget.paradigm != "global":
        words = made.words
        cells = cell_prototypes(
            clip, words.classes, tuple(words.domains.values()), words.cell_templates
        )
        forgotten, kept = cells[made.mask], cells[~made.mask]
    match made.method:
        case "hull":
            return erasers.hull(forgotten, kept)
        case "avert":
            return erasers.avert(forgotten, kept)
        case "ccup":
            return erasers.ccup(forgotten, kept)
        case "leace":
            return erasers.leace(forgotten, kept)
        case "two_sided":
            assert seen is not None  # checked
            return _two_sided(made, seen)
        case _:
            if seen is not None:
                f = seen.features
                mask = made.forget.mask(f.class_names, f.domain_names)
                forgotten = torch.cat([forgotten, seen.cell_means()[mask]])
            return erasers.nullspace(forgotten)


def _two_sided(made: Plan, seen: Visual) -> Edit:
    """One visual prototype a class, over all domains; a class's other names share its."""
    names = seen.features.class_names
    means = unit(seen.cell_means().mean(1))
    gone = torch.tensor([name in made.forget.classes for name in names])
    owner = {a: c for c, others in made.forget.aliases.items() for a in others}
    rows = [names.index(owner.get(name, name)) for name in made.forget.names]
    return erasers.two_sided(made.forget_rows, made.keep_rows, means[rows], means[~gone])


def _gated(clip: Clip, made: Plan, seen: Visual | None, space: Space) -> Edit:
    words, mask = made.words, made.mask
    classes = class_prototypes(clip, words.classes, words.class_templates)
    if seen is None:
        cells = cell_prototypes(
            clip, words.classes, tuple(words.domains.values()), words.cell_templates
        )
        samples = _with_alias_samples(clip, made, cells)
        grid = torch.ones(samples.shape[:-1]).nonzero()
        rows = samples.flatten(0, 2)
        return erasers.gated(rows, grid[:, 0], grid[:, 1], classes, mask, numbers=erasers.TEXT)
    f = seen.features
    assert f.domains is not None  # `Visual.on` has seen to it
    source = {"embedding": None, "hidden": f.hidden, "mlp": seen.mlp}[space]
    if space != "embedding" and source is None:
        raise ValueError(f"the visual prototypes were made without the {space} feature")
    given = (f.embeddings.double(), f.labels, f.domains, classes, mask)
    hidden = None if source is None else source.double()
    numbers = seen.numbers or erasers.leave_out(*given, hidden=hidden)
    edit = erasers.gated(*given, hidden=hidden, numbers=numbers)
    if space != "mlp":
        return edit
    return Edit(edit.read, clip.last_mlp().carry_back(edit.write), "mlp", edit.provenance)


def _with_alias_samples(
    clip: Clip, made: Plan, cells: Float[Tensor, "classes domains dim"]
) -> Float[Tensor, "classes domains samples dim"]:
    """Cells as a class's name and its aliases make them; others repeat their one sample."""
    most = max((len(a) for a in made.forget.aliases.values()), default=0)
    samples = cells[:, :, None].repeat(1, 1, 1 + most, 1)
    domains = tuple(made.words.domains.values())
    for name, others in made.forget.aliases.items():
        rows = cell_prototypes(clip, others, domains, made.words.cell_templates)
        samples[made.words.classes.index(name), :, 1 : 1 + len(others)] = rows.transpose(0, 1)
    return samples


def _domains(base: Words, given: Mapping[str, str] | None, forget: Forget) -> Mapping[str, str]:
    if given or base.domains:
        return given or base.domains
    return {word: word for word in (*DOMAIN_WORDS, *forget.domains)}


def _method(asked: str | None, forget: Forget, side: Side) -> str:
    able = [
        name
        for name, method in METHODS.items()
        if forget.paradigm in method.paradigms and side in method.sides
    ]
    if asked is None:
        return able[0]
    if asked not in METHODS:
        raise ValueError(f"unknown method {asked!r}; allowed: {', '.join(METHODS)}")
    if asked not in able:
        what = {"global": "a class everywhere", "cell": "a class in some domains"}
        raise ValueError(
            f"method {asked!r} does not forget {what.get(forget.paradigm, 'whole domains')} on the "
            f"{side} side; allowed: {', '.join(able)}"
        )
    return asked


def _check_known(classes: Sequence[str], names: Sequence[str]) -> None:
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(
            f"class {', '.join(map(repr, unknown))} is not in the class list: {listed(names)}"
        )


def _where(names: Sequence[str], mask: Bool[Tensor, " n"]) -> tuple[str, ...]:
    return tuple(name for name, marked in zip(names, mask.tolist(), strict=True) if marked)


def with_domain_keys(forget: Forget, words: Words) -> Forget:
    """Let a domain be named by its key or by its word.

    Args:
        forget: The request.
        words: Its domains' keys and words.

    Returns:
        The request with keys alone.

    Raises:
        ValueError: If a domain is unknown or named twice, or every domain is named.
    """
    by_word = {word: key for key, word in words.domains.items()}
    unknown = [d for d in forget.domains if d not in words.domains and d not in by_word]
    if unknown:
        raise ValueError(
            f"unknown domain {', '.join(map(repr, unknown))}; known: {', '.join(words.domains)}"
        )
    keys = tuple(d if d in words.domains else by_word[d] for d in forget.domains)
    check_names("domain", keys)
    if len(keys) == len(words.domains):
        raise ValueError(
            "every known domain is to be forgotten; to forget a class everywhere, name no domain"
        )
    return Forget(forget.classes, keys, forget.keep, forget.aliases)


def with_aliases(forget: Forget, words: Words) -> Forget:
    """Join the aliases that the model's folder carries, less what the user keeps or lists.

    Args:
        forget: The request.
        words: The model's classes and aliases.

    Returns:
        The request with both kinds of aliases.
    """
    taken = {name.casefold() for name in (*forget.keep, *words.classes, *forget.names)}
    joined = {}
    for name in forget.classes:
        carried = [a for a in words.aliases.get(name, ()) if a.casefold() not in taken]
        taken |= {a.casefold() for a in carried}
        both = (*forget.aliases.get(name, ()), *carried)
        if both:
            joined[name] = both
    return Forget(forget.classes, forget.domains, forget.keep, joined)


def certify(
    clip: Clip, forgotten: Sequence[str], kept: Sequence[str], templates: Sequence[str]
) -> Certificate:
    """Prove from a model's own weights that forgotten names cannot win, or measure how far off.

    Args:
        clip: The edited model, as folded or as loaded from its folder.
        forgotten: Names that were forgotten.
        kept: Names that stay.
        templates: Class templates the zero-shot classifier is made with.

    Returns:
        One convex combination and one violation a forgotten name, over `kept`.
    """
    return _certify(clip, *(class_prototypes(clip, n, templates) for n in (forgotten, kept)))


def certify_plan(edited: Clip, made: Plan) -> Certificate:
    """The same for a plan just carried out; an untouched text tower need not encode again.

    Args:
        edited: The edited model.
        made: The plan its edit was made from.

    Returns:
        One convex combination and one violation a forgotten name, over `made.keep`.
    """
    if made.side == "text":
        return certify(edited, made.forget.names, made.keep, made.words.class_templates)
    return _certify(edited, made.forget_rows, made.keep_rows)


def _certify(
    clip: Clip, forget: Float[Tensor, "m dim"], keep: Float[Tensor, "n dim"]
) -> Certificate:
    return certificate.certify(*_visual_map(clip), forget, keep)


def _visual_map(
    clip: Clip,
) -> tuple[Float[Tensor, "width dim"], Float[Tensor, " dim"] | None]:
    """The affine map from the last feature to the joint space; the identity where there is none."""
    try:
        projection = clip.projection("visual")
    except ValueError:
        return torch.eye(clip.dim, dtype=torch.float64), None
    return projection.matrix(), projection.bias()
