"""Grids of class x domain: a model, images to report on, prototypes that saw none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from _tables import markdown, spread
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn import plans
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.mlp import MlpFeatures
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import Plan
from nullspace_unlearn.prototypes import (
    Visual,
    from_pictures,
    from_text,
    synthesise,
)
from nullspace_unlearn.prototypes.nearness import Nearness, nearness
from nullspace_unlearn.words import Words


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, images to measure its edits on, and prototypes that saw none of these images.

    Attributes:
        clip: The untouched model.
        features: Its embeddings and hidden features of the images.
        mlp: What its last MLP makes of them; None where it cannot be reached.
        domains: Domain -> the word prompts use for it.
        real: Draws of a few real images of each cell, by their number a cell.
    """

    clip: Clip
    features: Features
    mlp: MlpFeatures | None
    domains: Mapping[str, str]
    real: Mapping[int, Sequence[Visual]]

    @property
    def words(self) -> Words:
        """The templates in use."""
        return self.clip.words or Words()

    @cached_property
    def classes(self) -> Float[Tensor, "classes dim"]:
        """The zero-shot classifier."""
        return classifier(self.clip, self.features, self.words.class_templates)

    def plan(self, forget: Forget, method: str | None = None) -> Plan:
        """What `nsu erase` would do."""
        return plans.plan(
            self.clip,
            forget,
            classes=self.features.class_names,
            domains=self.domains,
            method=method,
        )

    def embeddings(self, edit: Edit | None = None) -> Float[Tensor, "n dim"]:
        """The images' embeddings, after an edit if one is given."""
        if edit is None:
            return self.features.embeddings
        if edit.space == "mlp":
            assert self.mlp is not None
            return self.clip.last_mlp().apply(edit, self.mlp).float()
        return edit.apply(self.features.embeddings, self.features.hidden)

    @cached_property
    def made(self) -> dict[str, Visual]:
        """Prototypes made without any image."""
        given = (self.clip, self.features.class_names, self.domains, self.words.cell_templates)
        pixels = synthesise(*given)
        return {
            "closed form": from_text(*given),
            "pixels": from_pictures(
                self.clip, pixels, space="embedding" if self.mlp is None else "mlp"
            ),
        }


def requests(classes: Sequence[str], domains: Sequence[str]) -> dict[str, list[Forget]]:
    """Every request of each kind: one cell, one class everywhere, one whole domain."""
    return {
        "cell": [Forget([c], [d]) for c in classes for d in domains],
        "global": [Forget([c]) for c in classes],
        "domain": [Forget(domains=[d]) for d in domains],
    }


def near(bench: Bench) -> dict[str, list[Nearness]]:
    """How near each source comes to the images reported on."""
    found = {name: [nearness(v.features, bench.features)] for name, v in bench.made.items()}
    for each, draws in bench.real.items():
        found[f"{each} real images"] = [nearness(v.features, bench.features) for v in draws]
    return found


def near_table(found: Mapping[str, Sequence[Nearness]]) -> str:
    """Nearness as Markdown, means over draws."""
    keys = ("cosine", "cosine_real_mean", "rank", "domain_transfer", "class_transfer")
    labels = ("cosine", "about the real mean", "rank", "probe, domain", "probe, class")
    header = ["prototypes", *(f"z: {label}" for label in labels), *(f"h: {x}" for x in labels)]
    lines = []
    for name, draws in found.items():
        values = []
        for space in ("embedding", "hidden"):
            for key in keys:
                some = [getattr(getattr(one, space), key) for one in draws]
                values.append(f"{spread(some).mean:.3f}")
        lines.append([name, *values])
    return markdown(header, lines)


def read_mlp(clip: Clip, batches: Sequence[Tensor]) -> MlpFeatures | None:
    """What the last MLP makes of images; None where it cannot be reached."""
    try:
        clip.last_mlp()
    except ValueError:
        return None
    parts = [clip.mlp_image(batch) for batch in batches]
    names = ("mlp", "residual", "deviation", "hidden", "embedding")
    return MlpFeatures(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})
