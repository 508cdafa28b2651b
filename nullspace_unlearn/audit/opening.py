"""From what a user names to a `Case`: models or features, images, controls, what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.audit.case import Case, Elsewhere, View
from nullspace_unlearn.audit.control import random_features, random_model
from nullspace_unlearn.audit.descent import differences
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.evaluate.compare import EVERYWHERE, Lists, cells_of, classifier
from nullspace_unlearn.features import Features
from nullspace_unlearn.features import embed as embedding
from nullspace_unlearn.features.file import has_projection
from nullspace_unlearn.fingerprint import Fingerprint, code_of, machine
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.words import Words, same_name

_SHOWN = 16  # characters of a hash in a file's name
_RANDOM = 104_729  # so that the control is not drawn as anything else of the same seed
# Fewer images than this say nothing of a forgotten class.
LEAST = 2


@dataclass(frozen=True)
class Choices:
    """How an audit is made.

    Attributes:
        quick: Whether minutes are wanted, not hours.
        seed: Of everything that is drawn.
        draws: Samples of the bootstrap.
        batch_size: Images of a forward pass.
        workers: Threads that read images ahead.
        quiet: Whether to leave out progress bars.
    """

    quick: bool = False
    seed: int = 0
    draws: int = 200
    batch_size: int = 64
    workers: int = 2
    quiet: bool = True


@dataclass(frozen=True, eq=False)
class Subject:
    """What is audited, before anything is computed. Make one with `of_models` or `of_features`.

    Attributes:
        original: The untouched model or its features.
        edited: The model that is audited, or its features.
        retrained: A model that never saw what was to be forgotten, or its features.
        source: The images; of feature files, the original's.
        requests: What was to be forgotten, first to last.
        mask: `[classes, domains]` True where a cell was.
        names: What images choose from.
        templates: Class templates.
        changes: What was changed in the weights, by key.
        choices: How the audit is made.
        others: Other data sets, without what was to be forgotten.
    """

    original: Clip | Features
    edited: Clip | Features
    retrained: Clip | Features | None
    source: Source
    requests: tuple[Forget, ...]
    mask: Bool[Tensor, "classes domains"]
    names: tuple[str, ...]
    templates: tuple[str, ...]
    changes: dict[str, Tensor]
    choices: Choices
    others: tuple[Source, ...] = ()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What is audited: models, images, request, words. Not how."""
        return Fingerprint(
            {
                "original": _mark(self.original),
                "edited": _mark(self.edited),
                "retrained": None if self.retrained is None else _mark(self.retrained),
                "images": self.source.fingerprint,
                "others": [one.fingerprint for one in self.others],
                "forgotten": self.mask.tolist(),
                "names": list(self.names),
                "templates": list(self.templates),
            }
        )

    def case(self, keep: Path | None = None) -> Case:
        """Embed the images under every model.

        Args:
            keep: Folder that features are kept in, and taken from where they are there.

        Raises:
            ValueError: If a cell has no readable image, a model gives NaN or Inf, or features are
                asked of a model that cannot be had from what the feature file holds.
        """
        choices = self.choices
        generator = torch.Generator().manual_seed(choices.seed + _RANDOM)
        views: dict[str, View] = {}
        models: dict[str, Any] = {}
        if isinstance(self.original, Features):
            assert isinstance(self.edited, Features)
            drawn = random_features(self.original, self.edited, generator)
            some: dict[str, Any] = {"original": self.original, "edited": self.edited}
            some |= {"random": drawn, "retrained": self.retrained}
            for role, features in some.items():
                if features is not None:
                    views[role] = View(features, features.text)
        else:
            assert isinstance(self.edited, Clip)
            drawn_model = random_model(self.original, self.changes, generator)
            models = {"original": self.original, "edited": self.edited}
            models |= {"random": drawn_model, "retrained": self.retrained}
            models = {role: clip for role, clip in models.items() if clip is not None}
            views = self._views(models, self.source, self.names, keep)
        return Case(
            mask=self.mask,
            requests=self.requests,
            names=self.names,
            templates=self.templates,
            original=views["original"],
            edited=views["edited"],
            random=views.get("random"),
            retrained=views.get("retrained"),
            source=self._read(views["original"].features),
            elsewhere=tuple(self._elsewhere(models, one, keep) for one in self.others),
            quick=choices.quick,
            draws=choices.draws,
            seed=choices.seed,
            batch_size=choices.batch_size,
            workers=choices.workers,
        )

    def _views(
        self, models: Mapping[str, Clip], source: Source, names: Sequence[str], keep: Path | None
    ) -> dict[str, View]:
        """Images and names under every model."""
        views = {}
        for role, clip in models.items():
            features = self._features(role, clip, source, keep)
            text = classifier(clip, features, self.templates, names)
            views[role] = View(features, text.cpu(), clip)
        return views

    def _elsewhere(
        self, models: Mapping[str, Clip], source: Source, keep: Path | None
    ) -> Elsewhere:
        views = self._views(models, source, source.classes, keep)
        return Elsewhere(source.name, views["original"].features.labels, views)

    def _features(self, role: str, clip: Clip, source: Source, keep: Path | None) -> Features:
        """Some images under a model; kept."""
        assert isinstance(self.original, Clip)
        if source.features is not None:
            held = replace(source.features, text=None)
            return held if role == "original" else self._moved(held, role, clip)
        hidden = has_projection(clip)
        made_from = Fingerprint(
            {
                "model": clip.fingerprint,
                "images": source.fingerprint,
                "hidden": hidden,
                "machine": machine(clip.device),
                "code": code_of("features.embed"),
            }
        )
        file = None if keep is None else keep / f"{role}-{made_from.digest[:_SHOWN]}.safetensors"
        if file is not None and file.exists():
            try:
                return Features.load(file)
            except ValueError:
                pass  # damaged: made again
        choices = self.choices
        features = embedding.embed(
            clip, source, batch_size=choices.batch_size, workers=choices.workers,
            quiet=choices.quiet, hidden=hidden,
        )  # fmt: skip
        if file is not None:
            features.save(file, overwrite=True)
        return features

    def _moved(self, held: Features, role: str, clip: Clip) -> Features:
        """The original's features as a model of another final projection would give them."""
        assert isinstance(self.original, Clip)
        other = differences(self.original, clip) if role == "retrained" else self.changes
        if not any(key.startswith("visual.") for key in other):
            return held
        was, now = self.original.projection("visual"), clip.projection("visual")
        own = {now.key, now.bias_key}
        if deeper := [key for key in other if key.startswith("visual.") and key not in own]:
            raise ValueError(
                f"{role}: {deeper[0]} differs, which lies before the final projection, so features "
                "of the original do not tell what it gives: give the images"
            )
        if held.hidden is not None:
            return replace(
                held, embeddings=now.apply(held.hidden), provenance=embedding.made_with(clip)
            )
        # z' = (z - b) X + b' where W X = W', if there is such an X.
        turn = torch.linalg.lstsq(was.matrix(), now.matrix(), driver="gelsd").solution
        off = (was.matrix() @ turn - now.matrix()).norm() / now.matrix().norm()
        if off > 1e-4:
            raise ValueError(
                f"{role}: its change reads the hidden feature, which the feature file lacks: embed "
                "the images with --hidden, or give them"
            )
        rows = held.embeddings.double()
        rows = rows if (b := was.bias()) is None else rows - b
        rows = rows @ turn
        rows = rows if (b := now.bias()) is None else rows + b
        return replace(held, embeddings=rows.float(), provenance=embedding.made_with(clip))

    def _read(self, features: Features) -> Source:
        """The images that could be read, a row of the features each."""
        skipped = {one["file"] for one in features.provenance.get("skipped", ())}
        if not skipped or not self.source.pictures:
            return self.source
        kept = [i for i, one in enumerate(self.source.pictures) if one.name not in skipped]
        return self.source.subset(torch.tensor(kept))


def of_models(
    original: Clip,
    edited: Clip,
    source: Source,
    *,
    forget: Forget | None = None,
    retrained: Clip | None = None,
    names: Sequence[str] = (),
    templates: Sequence[str] = (),
    others: Sequence[Source] = (),
    choices: Choices = Choices(),
) -> Subject:
    """What is to be audited of an edited model.

    Args:
        original: The untouched model.
        edited: The model to audit.
        source: Images, or features of the original.
        forget: What was to be forgotten, its domains by key; absent: what the edited model's
            history says beyond the original's.
        retrained: A model that never saw it.
        names: Further names that stay; absent: those that the history says were kept.
        templates: Class templates; absent: the data's, else the original model's own.
        others: Other data sets, which show what becomes of classes that nobody asked about. Their
            images of a forgotten class are left out.
        choices: How the audit is made.

    Raises:
        ValueError: If the edited model does not descend from the original, nothing was to be
            forgotten, the images do not show it, or another data set shows nothing else.
    """
    changes = differences(original, edited)
    if not changes and edited.adapter is None:
        raise ValueError("the edited model is the original: none of its tensors differs")
    history = edited.history
    done = replace(history, edits=history.edits[len(original.history.edits) :])
    requests = (forget,) if forget is not None else done.requests
    if not requests:
        raise ValueError(
            "the edited model does not say what it was to forget: give --class, --domain, or both"
        )
    columns = source.domains or EVERYWHERE
    if forget is not None:
        mask = cells_of(forget, source.classes, source.domains)
    else:
        mask = done.forgotten(source.classes, columns)
    _check(mask, source)
    # What earlier edits forgot is neither asked for nor what stays.
    stay = tuple(names) or history.kept
    gone = {name for request in requests if request.paradigm == "global" for name in request.names}
    own = (original.words or Words()).class_templates
    listed = Lists(tuple(name for name in stay if name not in gone)).rows(
        Features(torch.ones(1, 1), torch.zeros(1).long(), source.classes)
    )[0]
    return Subject(
        original, edited, retrained, source, requests, mask, listed,
        tuple(templates) or source.templates or own, changes, choices,
        tuple(_of_others(one, requests) for one in others),
    )  # fmt: skip


def of_features(
    original: Features,
    edited: Features,
    source: Source,
    forget: Forget,
    retrained: Features | None = None,
    choices: Choices = Choices(),
) -> Subject:
    """What is to be audited where no model is at hand.

    Args:
        original: Features of the untouched model, with text.
        edited: Features of the same images under the edited one, with its text.
        source: The original's, as a source.
        forget: What was to be forgotten, its domains by key.
        retrained: Features of a model that never saw it.
        choices: How the audit is made.

    Raises:
        ValueError: If a file holds no text, or they are of other images.
    """
    for role, some in (("edited", edited), ("original", original), ("retrained", retrained)):
        if some is None:
            continue
        if some.text is None:
            raise ValueError(
                f"the {role} features bring no text, and no model is at hand to make it"
            )
        same = some.class_names == original.class_names and torch.equal(
            some.labels, original.labels
        )
        there = [one.domains for one in (some, original) if one.domains is not None]
        if not same or len(there) == 1 or (there and not torch.equal(*there)):
            raise ValueError(f"the {role} features are not of the original's images")
    mask = cells_of(forget, original.class_names, original.domain_names)
    _check(mask, source)
    return Subject(
        original, edited, retrained, source, (forget,), mask, original.class_names, (), {}, choices
    )


def _of_others(source: Source, requests: Sequence[Forget]) -> Source:
    """The classes of a data set that no request names."""
    asked = {same_name(name) for request in requests for name in request.names}
    kept = [c for c, name in enumerate(source.classes) if same_name(name) not in asked]
    if len(kept) < 2:
        raise ValueError(
            f"{source.name} shows no two classes that nobody asked to forget: name other data"
        )
    if len(kept) == len(source.classes):
        return source
    return source.cut(kept, range(len(source.domains)))


def _check(mask: Bool[Tensor, "classes domains"], source: Source) -> None:
    """Refuse images that say nothing."""
    columns = source.domains or EVERYWHERE
    if not mask.any():
        raise ValueError("the images show nothing of what was to be forgotten")
    for c, d in mask.nonzero().tolist():
        n = int(source.counts[c, d])
        if 0 < n < LEAST:
            raise ValueError(
                f"there is {n} image of {source.classes[c]!r} in {columns[d]!r}, and an audit "
                f"needs at least {LEAST} of each cell that was to be forgotten"
            )
    for what, some in (("was to be forgotten", mask), ("stays", ~mask)):
        if not int(source.counts[some].sum()):
            raise ValueError(f"there is no image of what {what}")


def _mark(one: Clip | Features) -> Fingerprint:
    return one.fingerprint
