"""A forgotten name in other words: each of many templates by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.asking import ALL, Answers, Asking
from nullspace_unlearn.evaluate.compare import Lists, cells_of
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import prompt_features, standard_templates, templates_that_fit


@dataclass(frozen=True)
class Phrasing:
    """What one template alone finds, `named_all`.

    Attributes:
        template: The template.
        value: How often images of what was to be forgotten get its name from the whole list.
        blind: How often other images do.
    """

    template: str
    value: float
    blind: float

    @property
    def told(self) -> float:
        """How much more often than by chance."""
        return self.value - self.blind


def phrasings(
    clip: Clip,
    features: Features,
    forget: Forget | Bool[Tensor, "classes domains"],
    templates: Sequence[str] | None = None,
    lists: Lists | None = None,
) -> tuple[Phrasing, ...]:
    """Ask a model in the words of each template alone.

    Args:
        clip: The model, for its text tower.
        features: Images under that model; text that they bring is not used.
        forget: The request, its domains by key, or the cells that are forgotten.
        templates: Class templates; if None the standard ones that the model reads whole.
        lists: The names that images choose from; the data's classes if None.

    Returns:
        One entry a template, that which tells most first; none where no image is of what was to be
        forgotten.
    """
    mask = (
        cells_of(forget, features.class_names, features.domain_names)
        if isinstance(forget, Forget)
        else forget
    )
    names, known, _ = (lists or Lists()).rows(replace(features, text=None))
    names = names[:known]
    asking = Asking.of(mask, features.labels, features.domains, len(names))
    if not len(asking.classes):
        return ()
    templates = tuple(templates or templates_that_fit(clip, names, standard_templates()))
    prompts = prompt_features(clip, names, templates).float()
    found = []
    for i, template in enumerate(templates):
        told = Answers.of(asking, features.embeddings, prompts[:, i]).told()
        values = (float(told.of(ALL, blind)) for blind in (False, True))
        found.append(Phrasing(template, *values))
    order = torch.tensor([-one.told for one in found]).argsort(stable=True)
    return tuple(found[i] for i in order.tolist())
