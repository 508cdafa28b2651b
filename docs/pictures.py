"""Draw the pictures of *How it works* from the bundled model: `python docs/pictures.py`.

The bundled pictures that it asks were seen by no edit.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.evaluate.asking import chances
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.report.picture import COLOURS, picture

IMAGES = Path(__file__).parent / "images"
NAME = "car"


def scores(clip: nsu.Clip) -> tuple[Tensor, Tensor]:
    """Cosines `[n, classes]` with every name, the forgotten one first; whose pictures these are."""
    features = embed(clip, bundled_to_report(each=10), quiet=True)
    names = classifier(clip, features, clip.words.class_templates)
    car = features.class_names.index(NAME)
    order = [car, *(c for c in range(len(names)) if c != car)]
    cosines = unit(features.embeddings.double()) @ names[order].double().mT
    return cosines, features.labels == car


def lists(models: dict[str, tuple[Tensor, Tensor]]) -> None:
    """How often the name is got from lists of every length, by its own images and by others."""
    with picture(IMAGES / "how-lists.png", (6.4, 3.2), overwrite=True) as figure:
        ax = figure.subplots()
        for colour, (label, (cosines, own)) in zip(COLOURS, models.items(), strict=False):
            names = cosines.shape[1] - 1
            beaten = (cosines[:, 1:] > cosines[:, :1]).sum(1)
            lengths = range(2, names + 2)
            got = torch.stack([chances(names, m)[beaten] for m in lengths], 1)
            ax.plot(lengths, got[own].mean(0), color=colour, marker="o", markersize=3, label=label)
            ax.plot(lengths, got[~own].mean(0), color=colour, linestyle=":")
        ax.plot([], [], color="grey", linestyle=":", label="the same of other images: chance")
        ax.set(
            xlabel="names in the list", ylabel=f"gets the name {NAME!r}", ylim=(-0.03, 1.03),
            xticks=list(lengths),
        )  # fmt: skip
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def spread(models: dict[str, tuple[Tensor, Tensor]]) -> None:
    """How far the name scores above the mean of the names that stay, image by image."""
    with picture(IMAGES / "how-hull.png", (6.4, 2.8), overwrite=True) as figure:
        axes = figure.subplots(1, len(models), sharex=True, sharey=True)
        for ax, (title, (cosines, own)) in zip(axes, models.items(), strict=True):
            above = cosines[:, 0] - cosines[:, 1:].mean(1)
            best = cosines[:, 1:].amax(1) - cosines[:, 1:].mean(1)
            for rows, label, colour in ((~own, "other images", 0), (own, f"images of {NAME}", 5)):
                ax.scatter(above[rows], best[rows], s=6, color=COLOURS[colour], label=label)
            ax.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle="--")
            ax.set_title(title, fontsize=9)
            ax.set_xlabel(f"{NAME!r} above the mean of the rest", fontsize=8)
        axes[0].set_ylabel("best other name\nabove that mean", fontsize=8)
        axes[-1].legend(fontsize=7, frameon=False, loc="lower left")


def main() -> None:
    """Draw both."""
    clip = nsu.load("nsu-mini")
    asked = {"untouched": scores(clip)}
    for title, depth in (("hull, depth .01", 0.01), ("hull, depth 1", 1.0)):
        edit = nsu.erase(clip, nsu.Forget(classes=[NAME]), numbers={"depth": depth})
        asked[title] = scores(edit.fold(clip))
    lists(asked)
    spread(asked)


if __name__ == "__main__":
    main()
