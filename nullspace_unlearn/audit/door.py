"""`nsu.audit(...)`: an audit from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nullspace_unlearn.audit.opening import Choices, of_features, of_models
from nullspace_unlearn.audit.run import Audit, run
from nullspace_unlearn.clip import Clip, load
from nullspace_unlearn.data.find import from_features, open_source
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes.text_cache import cached_text


def audit(
    edited: Clip | Features | str | Path,
    original: Clip | Features | str | Path,
    data: Source | Features | str | Path | None = None,
    *,
    forget: Forget | None = None,
    retrained: Clip | Features | str | Path | None = None,
    others: Sequence[Source | Features | str | Path] = (),
    keep: Sequence[str] = (),
    templates: Sequence[str] = (),
    only: Sequence[str] = (),
    quick: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    draws: int = 200,
    quiet: bool = True,
) -> Audit:
    """Find out what an edited model still tells of what it was made to forget.

    Args:
        edited: The model to audit, or a name that `load` takes; or features under it, with text.
        original: The untouched one; features where `edited` is that.
        data: Images, features of them under the original, or what `data.find.open_source` takes.
            Not with features in place of models, which are the data.
        forget: What was to be forgotten, its domains by key; absent: what the edited model says.
        retrained: A model, or features, that never saw it.
        others: Other data sets, as `data`: what became of classes that nobody asked about. Not
            with features in place of models.
        keep: Names that stay; absent: those that the edited model says were kept.
        templates: Class templates; absent: the data's, else the original model's own.
        only: Names of the questions to ask; empty: all.
        quick: Whether to leave out what takes long.
        output: Folder that answers are kept in, so that an audit cut short goes on.
        overwrite: Whether to begin anew there.
        seed: Of everything that is drawn.
        draws: Samples of the bootstrap; 0: no intervals.
        quiet: Whether to leave out progress bars.

    Returns:
        The audit: `audit["names"]` is one answer, `to_json()` all of it.

    Raises:
        ValueError: If the edited model does not descend from the original, nothing was to be
            forgotten, the images do not show it or are too few, there is no such question, or the
            output holds something else.
    """
    choices = Choices(quick, seed, draws, quiet=quiet)
    target = None if output is None else Path(output)
    if isinstance(edited, Features) or isinstance(original, Features):
        third = retrained
        if not isinstance(edited, Features) or not isinstance(original, Features):
            raise ValueError("edited and original must both be features, or both be models")
        if third is not None and not isinstance(third, Features):
            raise ValueError("retrained must be features, as edited and original are")
        if others:
            raise ValueError("other data sets take models: features are of one set of images")
        if data is not None or forget is None:
            raise ValueError("features are the data and tell no request: give forget, and no data")
        source = from_features(original, "features")
        subject = of_features(original, edited, source, forget, third, choices)
    else:
        if data is None:
            raise ValueError("give data: images, features of the original, or 'nsu-mini'")
        if isinstance(retrained, Features):
            raise ValueError("retrained must be a model, as edited and original are")
        models = [
            one if isinstance(one, Clip | None) else load(one)
            for one in (original, edited, retrained)
        ]
        assert models[0] is not None and models[1] is not None
        subject = of_models(
            models[0], models[1], _source(data), forget=forget, retrained=models[2], names=keep,
            templates=templates, others=[_source(one) for one in others], choices=choices,
        )  # fmt: skip
    with cached_text(None):
        return run(subject, target, only=tuple(only), overwrite=overwrite)


def _source(data: Source | Features | str | Path) -> Source:
    if isinstance(data, Source):
        return data
    return from_features(data, "features") if isinstance(data, Features) else open_source(data)
