"""`Plan`: names turned into what an eraser is given, once for erase, sweep and bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.clip import Clip, find_value
from nullspace_unlearn.edit import DEEPER, Side, Space
from nullspace_unlearn.erasers import METHODS, Given, Seen
from nullspace_unlearn.erasers.hull import RIDGE
from nullspace_unlearn.erasers.method import check_space
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.history import History
from nullspace_unlearn.linalg import covariance, oblique_dual, regularised, solve_definite
from nullspace_unlearn.prototypes import (
    DOMAIN_WORDS,
    Visual,
    cell_prototypes,
    class_prototypes,
    imagenet_names,
    moved_by_wording,
    names_that_fit,
    near_synonyms,
)
from nullspace_unlearn.spelling import did_you_mean, listed
from nullspace_unlearn.words import Words, check_names, same_name

# A bundled vocabulary is cut to this many names (the nearest to what is forgotten) where every one
# of them needs a prompt for each domain: far names bear no risk and cost as much.
_NEAREST = 64
# Where cells are forgotten, pictures are made of no more kept names than these in every domain.
_BESIDE = 16


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
        earlier: What the model was made to forget before; it stays forgotten.
        wordings: Whether the names are to go in other words too.
    """

    forget: Forget
    keep: tuple[str, ...]
    synonyms: tuple[str, ...]
    words: Words
    method: str
    side: Side
    forget_rows: Float[Tensor, "m dim"]
    keep_rows: Float[Tensor, "n dim"]
    earlier: History
    wordings: bool = False

    def __repr__(self) -> str:
        def some(names: Sequence[str]) -> str:
            return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")

        where = f"in {some(self.forget.domains)}" if self.forget.domains else "everywhere"
        near = f", {len(self.synonyms)} near-synonyms go too" if self.synonyms else ""
        return (
            f"Plan(forget {some(self.forget.names) or 'every class'} {where};\n"
            f"     keep {len(self.keep)} names: {some(self.keep)}{near};\n"
            f"     method={self.method!r}, side={self.side!r})"
        )

    def rows_of(self, names: Sequence[str]) -> Float[Tensor, "names dim"]:
        """Text prototypes of some of the forgotten and kept names."""
        by_name = dict(zip(self.forget.names, self.forget_rows, strict=False))
        by_name |= dict(zip(self.keep, self.keep_rows, strict=True))
        return torch.stack([by_name[name] for name in names])

    @property
    def mask(self) -> Bool[Tensor, "classes domains"]:
        """The request over `words.classes` and `words.domains`.

        Where it is in some domains, cells of the same classes that were forgotten before are in it:
        an edit is free to let a class rise in cells that it is not told of.
        """
        classes, domains = self.words.classes, tuple(self.words.domains)
        mask = self.forget.mask(classes, domains)
        if not self.forget.domains:
            return mask
        return mask | (self.earlier.forgotten(classes, domains) & mask.any(-1, keepdim=True))


def plan(
    clip: Clip,
    forget: Forget,
    *,
    classes: Sequence[str] | None = None,
    domains: Mapping[str, str] | None = None,
    templates: Sequence[str] | None = None,
    method: str | None = None,
    side: Side = "visual",
    images: bool = False,
    wordings: bool | None = None,
) -> Plan:
    """Resolve a request: vocabulary, aliases, near-synonyms, domain words, method.

    It joins the requests that the model has met before: a name forgotten everywhere is none to
    keep, other cells of a class that were forgotten go with those asked for, and text is taken as
    far as the model's images show it (`Clip.visible`), so that nothing comes back.

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
        images: Whether images, or pictures that stand for them, will be shown, so that a method
            that must have them may be the default.
        wordings: Whether names forgotten everywhere are not to come back in other words either: how
            templates move them is held down too, by a method that can (`Method.wordings`). Absent:
            by such a method where fewer names stay than the space has dimensions, and the model was
            not edited before.

    Returns:
        The plan; nothing has been edited.

    Raises:
        ValueError: If a name is unknown, empty or given twice, nothing is kept, or the method does
            not take such a request.
    """
    _check_call(forget, classes, domains, templates)
    clip.check_side(side)
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
    earlier = clip.history
    words = _still_there(words, forget, earlier)
    method = _method(method, forget, side, images)
    if wordings and not METHODS[method].wordings:
        able = [name for name, other in METHODS.items() if other.wordings]
        raise ValueError(
            f"{method} does not look at other words for a name; those that do, for classes "
            f"forgotten everywhere: {', '.join(able)}"
        )
    if bundled and not forget.classes:
        raise ValueError(
            "to forget a whole domain, say which classes the model must go on telling apart in the "
            "others: none are given, and the model's folder carries none"
        )
    names = words.classes or _imagenet_names(clip, words, forget)
    if not bundled:
        _check_known(forget.classes, names)
    gone = {same_name(name) for name in (*forget.names, *earlier.names)}
    if back := [name for name in forget.keep if same_name(name) in gone]:
        raise ValueError(f"{back[0]!r} was forgotten before, so it cannot be kept")
    candidates = tuple(dict.fromkeys(n for n in (*names, *forget.keep) if same_name(n) not in gone))
    if not candidates:
        raise ValueError("nothing is kept: the class list holds only what is forgotten")
    forget_rows, keep_rows = (
        clip.visible(class_prototypes(clip, some, words.class_templates))
        for some in (forget.names or names, candidates)
    )
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
    if wordings is None:
        spare = int(stays.sum()) < clip.dim and not earlier.edits
        wordings = METHODS[method].wordings and spare
    return Plan(
        forget=forget,
        keep=keep,
        synonyms=_where(candidates, synonyms),
        words=replace(words, classes=tuple(dict.fromkeys((*ordered, *forget.classes, *keep)))),
        method=method,
        side=side,
        forget_rows=forget_rows,
        keep_rows=keep_rows[stays],
        earlier=earlier,
        wordings=wordings,
    )


@dataclass(frozen=True, eq=False)
class Texts:
    """Text prototypes that some requests share: each name is encoded once.

    Attributes:
        classes: The vocabulary; two classes may have one name.
        aliases: Class and further name, each pair once.
        rows: `[names, dim]` float64 unit prototypes of the classes, then of the aliases.
        cells: `[names, domains, dim]` prototypes from prompts that name the domain; None where
            there is no text tower to make them, or no request needs them.
        moves: `[m, wordings, dim]` how other words move the names of the one request
            that is made of these (`Given.moves`); None where nobody looked.
    """

    classes: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]
    rows: Float[Tensor, "names dim"]
    cells: Float[Tensor, "names domains dim"] | None = None
    moves: Float[Tensor, "m wordings dim"] | None = None

    def given(
        self,
        requests: Sequence[Forget],
        domains: Sequence[str],
        seen: Seen | None = None,
        space: Space = "embedding",
        mask: Bool[Tensor, "requests classes domains"] | None = None,
    ) -> Given:
        """What an eraser is given for some requests over this vocabulary.

        Args:
            requests: The requests, resolved; all of them everywhere, or all in some domains.
            domains: Keys of the domains, in the order of the cells.
            seen: Visual prototypes.
            space: What the edits are to read.
            mask: The cells that go; absent: those of the requests.

        Returns:
            The requests as one batch.

        Raises:
            ValueError: If a request names what there is not.
        """
        if mask is None:
            mask = torch.stack([one.mask(self.classes, domains) for one in requests])
        place = {name: i for i, name in reversed(list(enumerate(self.classes)))}
        of_alias = {pair: i for i, pair in enumerate(self.aliases)}
        owner = [*range(len(self.classes)), *(place[name] for name, _ in self.aliases)]
        further = torch.zeros(len(requests), len(self.aliases), dtype=torch.bool)
        named = mask.any(-1)
        stays = ~named
        for b, one in enumerate(requests):
            for pair in alias_pairs(one):
                further[b, of_alias[pair]] = True
                if pair[1] in place:  # then it is no class of its own to this request
                    stays[b, place[pair[1]]] = False
        nobody = torch.zeros_like(further)
        return Given(
            names=self.rows,
            owner=torch.tensor(owner),
            mask=mask,
            forgotten=torch.cat([named, further], -1),
            kept=torch.cat([stays, nobody], -1),
            cells=self.cells,
            seen=seen,
            space=space,
            moves=None if self.moves is None else self.moves[None],
        )

    def with_wordings(self, clip: Clip, request: Forget, side: Side) -> Texts:
        """The same, and how other words move what a request forgets everywhere.

        Args:
            clip: The model. Of one that was edited before nothing is looked at: the directions that
                wordings take are few in all, and what is left of them tells names that stay apart.
            request: The request; one in some domains has no part in it.
            side: What the edit changes. Prompts pass through one of the text side, in these very
                words; for one of the images it is what words make of any name that tells nothing.
        """
        if clip.history.edits or request.domains:
            return self
        names = (*self.classes, *(alias for _, alias in self.aliases))
        given = replace(self, cells=None).given([request], ("everywhere",))[0]
        both = [some.nonzero()[:, 0] for some in (given.forgotten, given.kept)]
        told = [([names[i] for i in some.tolist()], self.rows[some]) for some in both]
        if side == "text":
            told[1] = ([], self.rows[:0])
        return replace(self, moves=moved_by_wording(clip, *told[0], *told[1]))


def alias_pairs(request: Forget) -> tuple[tuple[str, str], ...]:
    """Class and further name, of everything forgotten under another name too."""
    return tuple((name, alias) for name, others in request.aliases.items() for alias in others)


def texts_of(
    clip: Clip,
    classes: Sequence[str],
    requests: Sequence[Forget],
    words: Words,
) -> Texts:
    """The prototypes that some requests need.

    Args:
        clip: The model.
        classes: The vocabulary; two classes may have one name.
        requests: The requests, resolved.
        words: Domains and templates.

    Returns:
        The prototypes, on the CPU.
    """
    aliases = tuple(dict.fromkeys(pair for one in requests for pair in alias_pairs(one)))
    names = (*classes, *(alias for _, alias in aliases))
    cells = None
    if any(one.domains for one in requests):
        cells = _cells_of(clip, names, words)
    rows = clip.visible(class_prototypes(clip, names, words.class_templates))
    return Texts(tuple(classes), aliases, rows, cells)


def given_for(
    clip: Clip,
    made: Plan,
    visual: Visual | None = None,
    space: Space = "embedding",
) -> Given:
    """What a plan's eraser is given.

    Args:
        clip: The model, which makes the prompts that name a domain.
        made: The plan.
        visual: Visual prototypes, where images are shown.
        space: What the edit is to read.

    Returns:
        One request.

    Raises:
        ValueError: If the visual prototypes lack a cell that the request needs.
    """
    words, method = made.words, METHODS[made.method]
    seen = None
    if visual is not None:
        shown = visual.features
        grid = cells_of_images(made, shown.class_names, shown.domain_names)
        if made.forget.domains:  # of a large vocabulary the nearest names are shown
            words = replace(words, classes=grid[0])
        seen = visual.on(*grid).seen(words.classes)
        if space == "value":
            seen = replace(seen, bases=find_value(clip.model).bases())
    aliases = alias_pairs(made.forget)
    names = (*words.classes, *(alias for _, alias in aliases))
    cells = None
    if made.forget.domains and (seen is None or method.prompts_beside_images):
        cells = _cells_of(clip, names, words)
    texts = Texts(words.classes, aliases, made.rows_of(names), cells)
    if made.wordings:
        texts = texts.with_wordings(clip, made.forget, made.side)
    shown_rows = [made.words.classes.index(name) for name in words.classes]
    mask = made.mask[shown_rows]
    return texts.given([made.forget], tuple(words.domains), seen, space, mask[None])[0]


def _cells_of(clip: Clip, names: Sequence[str], words: Words) -> Float[Tensor, "names domains dim"]:
    domains = tuple(words.domains.values())
    cells = cell_prototypes(clip, names, domains, words.cell_templates)
    return in_place_of_images(clip, cells, words)


def in_place_of_images(
    clip: Clip, prompts: Float[Tensor, "*any dim"], words: Words
) -> Float[Tensor, "*any dim"]:
    """Prompts' features, moved as earlier edits have moved the images that they stand for.

    An edit of the images `z M` with `M k = 0` that changes the names' scores least takes z to the
    nearest point without k in the metric of the names, `cov(names)` with a little ridge.

    Args:
        clip: The model.
        prompts: `[*any, dim]` features of prompts, float64.
        words: The names, and the templates they are met in.

    Returns:
        The same, if no edit has removed a direction.
    """
    if not clip.history.edits or clip.unseen.shape[-1] == 0:
        return prompts
    known = class_prototypes(clip, words.classes, words.class_templates)
    solved = solve_definite(regularised(covariance(known), RIDGE), clip.unseen)
    return prompts - (prompts @ clip.unseen) @ oblique_dual(clip.unseen, solved).mT


def space_for(clip: Clip, made: Plan, asked: Space | None = None) -> Space:
    """What a plan's edit is to read.

    Args:
        clip: The model.
        made: The plan.
        asked: What the user says; None for the first of the method's that the model has.

    Returns:
        The space.

    Raises:
        ValueError: If there is no such space, or the method does not read it, or the model lacks
            it; says which it has.
    """
    method = METHODS[made.method]
    if asked is None:
        return next(space for space in method.spaces if space in (*clip.spaces, "embedding"))
    check_space(asked)
    if asked not in method.spaces:
        able = [name for name, other in METHODS.items() if asked in other.spaces]
        raise ValueError(
            f"{made.method} reads {', '.join(method.spaces)}, not {asked}; "
            f"those that do: {', '.join(able)}"
        )
    if asked in DEEPER and asked not in clip.spaces:
        has = listed(dict.fromkeys((*clip.spaces, "embedding")))
        try:
            clip.inner(asked)
        except ValueError as error:
            raise ValueError(f"{error}; --space may be {has}") from None
    return asked


def cells_needed(made: Plan) -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes and domains that visual prototypes must show for a request.

    Args:
        made: The plan.

    Returns:
        Class names, and domain key -> word. Under a large vocabulary these are the forgotten
        classes and the kept names nearest to them, for classes forgotten everywhere in the first
        domain; for whole domains they are all names.
    """
    classes, domains = made.words.classes, dict(made.words.domains)
    most = {"global": _NEAREST, "cell": _BESIDE, "domain": len(classes)}[made.forget.paradigm]
    if len(classes) <= most:
        return classes, domains
    nearness = (made.keep_rows @ made.forget_rows.mT).amax(-1)
    near = {made.keep[i] for i in nearness.topk(min(most, len(made.keep))).indices.tolist()}
    classes = tuple(n for n in classes if n in near or n in made.forget.classes)
    if made.forget.paradigm == "global":
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


def resolved(request: Forget, words: Words) -> Forget:
    """A request over a fixed list of classes: domains by key, the aliases of the words joined.

    Args:
        request: Classes and domains to forget.
        words: The classes and domains there are, and the aliases.

    Returns:
        The request as `plan` would understand it.

    Raises:
        ValueError: If a class or domain is unknown, or everything is to be forgotten.
    """
    for name in request.classes:
        if name not in words.classes:
            raise ValueError(
                f"unknown class {name!r}{did_you_mean(name, words.classes)}; "
                f"there are {len(words.classes)}"
            )
    if request.domains and not words.domains:
        raise ValueError("the data names no domains, so nothing can be forgotten in some of them")
    request = with_domain_keys(request, words) if request.domains else request
    if not request.domains and len(request.classes) == len(words.classes):
        raise ValueError("a request forgets every class everywhere: nothing is kept")
    return with_aliases(request, words)


def _still_there(words: Words, forget: Forget, earlier: History) -> Words:
    """The words less what was forgotten before: names everywhere, and domains whole."""
    gone, asked = {same_name(name) for name in earlier.names}, set(forget.names)
    classes = tuple(n for n in words.classes if same_name(n) not in gone or n in asked)
    left = {k: w for k, w in words.domains.items() if not {k, w} & set(earlier.domains)}
    if forget.paradigm != "cell" or not set(left) > set(forget.domains):
        left = dict(words.domains)
    return replace(words, classes=classes, domains=left)


def _domains(base: Words, given: Mapping[str, str] | None, forget: Forget) -> Mapping[str, str]:
    if given or base.domains:
        return given or base.domains
    return {word: word for word in (*DOMAIN_WORDS, *forget.domains)}


def _method(asked: str | None, forget: Forget, side: Side, images: bool) -> str:
    able = [
        name
        for name, method in METHODS.items()
        if forget.paradigm in method.paradigms and side in method.sides
    ]
    if asked is None:
        return next(name for name in able if images or METHODS[name].images != "must")
    if asked not in METHODS:
        raise ValueError(f"unknown method {asked!r}; allowed: {', '.join(METHODS)}")
    if asked not in able:
        what = {"global": "a class everywhere", "cell": "a class in some domains"}
        raise ValueError(
            f"method {asked!r} does not forget {what.get(forget.paradigm, 'whole domains')} on the "
            f"{side} side; allowed: {', '.join(able)}"
        )
    return asked


def _check_call(
    request: Forget,
    classes: Sequence[str] | None,
    domains: Mapping[str, str] | None,
    templates: Sequence[str] | None,
) -> None:
    """Refuse a string where a request or a list is due, with the call that was meant."""
    if isinstance(request, str):
        raise ValueError(f"a request is no string: write Forget(classes=[{request!r}])")
    for what, value in (("classes", classes), ("templates", templates)):
        if isinstance(value, str):
            raise ValueError(
                f"{what} must be a list, got the string {value!r}: write {what}=[{value!r}]"
            )
    if domains is not None and not isinstance(domains, Mapping):
        names = [domains] if isinstance(domains, str) else list(domains)
        meant = {name: name for name in names}
        raise ValueError(f"domains maps each domain to its word: write domains={meant}")


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
    taken = {same_name(name) for name in (*forget.keep, *words.classes, *forget.names)}
    joined = {}
    for name in forget.classes:
        carried = [a for a in words.aliases.get(name, ()) if same_name(a) not in taken]
        taken |= {same_name(a) for a in carried}
        both = (*forget.aliases.get(name, ()), *carried)
        if both:
            joined[name] = both
    return Forget(forget.classes, forget.domains, forget.keep, joined)


def _imagenet_names(clip: Clip, words: Words, forget: Forget) -> tuple[str, ...]:
    """ImageNet's names, those that the model reads as a whole in every prompt they will need."""
    names = names_that_fit(clip, imagenet_names(), words.class_templates)
    for word in words.domains.values() if forget.domains else ():
        names = names_that_fit(clip, names, words.cell_templates, word)
    return names
