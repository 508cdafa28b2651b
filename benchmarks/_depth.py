"""What an edit leaves for those who look by image: probes on the edited embedding."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _tables import markdown
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn import erasers
from nullspace_unlearn.certificate import certify
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.hull import same_names
from nullspace_unlearn.erasers.two_sided import two_sided
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.evaluate.zeroshot import predict
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.linalg import covariance, regularised, unit
from nullspace_unlearn.words import Words

CHOICES = {1: 40, 10: 20}
"""How many random choices of one class, and of ten."""

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
PROVEN = 5
"""Choices whose certificate is computed, for each method."""

# Pictures a cell for prototypes, for the probe's shots (few, many), and for its test; the first
# of their seeds, in units of their sum, lies past every other table's.
_PROTOTYPES, _FEW, _MANY, _TESTS, _SEED = 2, 2, 10, 20, 100
_C = (1.0, 100.0)

_WHITENING = 0.1  # relative ridge
_EVERY = 10


@dataclass(frozen=True, eq=False)
class Given:
    """What a batch of edits sees; the rows are `two_sided`'s.

    Attributes:
        forget: `[*q, m, dim]`.
        keep: `[n, dim]`.
        visual_forget: `[*q, m, dim]`.
        visual_keep: `[k, dim]`.
        keep_mask: `[*q, n]`, or None for one edit that keeps all.
        visual_keep_mask: `[*q, k]`, likewise.
    """

    forget: Float[Tensor, "*q m dim"]
    keep: Float[Tensor, "n dim"]
    visual_forget: Float[Tensor, "*q m dim"]
    visual_keep: Float[Tensor, "k dim"]
    keep_mask: Bool[Tensor, "*q n"] | None = None
    visual_keep_mask: Bool[Tensor, "*q k"] | None = None

    def __getitem__(self, q: int) -> Given:
        """One of a batch, with what it keeps and no masks."""
        assert self.keep_mask is not None and self.visual_keep_mask is not None
        names = self.keep[self.keep_mask[q]]
        return Given(
            forget=self.forget[q],
            # The same to the model as a forgotten one: no linear edit tells the two apart.
            keep=names[~same_names(self.forget[q], names)],
            visual_forget=self.visual_forget[q],
            visual_keep=self.visual_keep[self.visual_keep_mask[q]],
        )


Eraser = Callable[[Given], Edit]


def give(
    chosen: Int[Tensor, "q m"],
    text: Float[Tensor, "classes dim"],
    images: Float[Tensor, "classes k dim"],
) -> Given:
    """A batch of requests that forget the chosen classes and keep all others.

    Args:
        chosen: Classes that each request forgets.
        text: Unit text prototypes.
        images: Unit embeddings of the user's images of every class.
    """
    kept = torch.ones(len(chosen), len(text), dtype=torch.bool).scatter(1, chosen, False)
    return Given(
        forget=text[chosen],
        keep=text,
        visual_forget=unit(images.mean(1))[chosen],
        visual_keep=images.flatten(0, 1),
        keep_mask=kept,
        visual_keep_mask=kept.repeat_interleave(images.shape[1], 1),
    )


def _hull(given: Given) -> Edit:
    return erasers.hull(given.forget, given.keep, keep_mask=given.keep_mask)


def _two_sided(given: Given, share: float = 1.0, **options: float) -> Edit:
    return two_sided(
        given.forget,
        given.keep,
        given.visual_forget,
        given.visual_keep,
        keep_mask=given.keep_mask,
        visual_keep_mask=given.visual_keep_mask,
        share=share,
        **options,
    )


def _nullspace(given: Given) -> Edit:
    return erasers.nullspace(torch.cat([given.forget, given.visual_forget], -2))


def _leace(given: Given) -> Edit:
    if given.visual_keep_mask is None:
        return erasers.leace(given.visual_forget, given.visual_keep, side="visual") @ _hull(given)
    images = [
        erasers.leace(v, given.visual_keep[kept], side="visual")
        for v, kept in zip(given.visual_forget, given.visual_keep_mask, strict=True)
    ]
    stacked = Edit(
        torch.stack([one.read for one in images]), torch.stack([one.write for one in images])
    )
    return stacked @ _hull(given)


def _nothing(given: Given) -> Edit:
    return _hull(given).scale(0)


ERASERS: dict[str, Eraser] = {
    "untouched": _nothing,
    "hull": _hull,
    **{f"two_sided, {s:g}": partial(_two_sided, share=s) for s in STRENGTHS},
    **{
        f"two_sided without the name, {s:g}": partial(_two_sided, share=s, name_weight=0.0)
        for s in (0.5, 1.0)
    },
    "nullspace, text + visual": _nullspace,
    "leace on images, then hull": _leace,
}
"""The methods; the numbers behind two_sided are its shares. Share 0 is hull."""


@dataclass(frozen=True)
class Outcome:
    """Shares of images found, after one edit of one choice.

    Attributes:
        forgotten: Of forgotten classes, by name.
        kept: Of kept classes, by name.
        probes: Of forgotten classes, by each probe on the edited embedding.
        kept_probe: Of kept classes (on ImageNet every tenth), by the centred nearest mean.
    """

    forgotten: float
    kept: float
    probes: Mapping[str, float]
    kept_probe: float


@dataclass(frozen=True)
class Row:
    """One method over all choices.

    Attributes:
        method: Its name.
        outcomes: One for each choice and split of the images.
        proven: How many of the certificates computed hold.
        tried: How many were computed.
    """

    method: str
    outcomes: tuple[Outcome, ...]
    proven: int
    tried: int

    def mean(self, name: str) -> float:
        """Mean over the choices of one of the accuracies."""
        return statistics.fmean(getattr(one, name) for one in self.outcomes)

    def probe(self, *names: str) -> float:
        """What the best of some probes finds on average."""
        return max(statistics.fmean(one.probes[n] for one in self.outcomes) for n in names)


def choose(classes: int, size: int, first: int = 1) -> Int[Tensor, "q m"]:
    """Random choices of `size` classes among every second one from `first` on.

    The defaults of `two_sided` were picked on choices among the even classes, so that figures are
    reported on the odd ones.
    """
    pool = torch.arange(first, classes, 2)
    picked = [
        pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:size]]
        for seed in range(CHOICES[size])
    ]
    return torch.stack(picked)


def imagenet_depth(features: Features, first: int = 1) -> dict[int, list[Row]]:
    """ImageNet, four images a class: every method on one and on ten forgotten classes.

    Four splits, so that each image is tested on once: of the images i, i+1, i+2, i+3 (modulo 4) of
    every class the first two are the user's (the edit sees those of all classes, the forgotten
    ones as the mean of the two), the third is the probe's one shot, the fourth is tested on, with
    the names and with the probes. No probe's shot or test image was seen by the edit.

    Args:
        features: The 4,000 images, with text.
        first: 1 for choices among the odd classes, which are reported, 0 for the even ones.

    Returns:
        For each number of forgotten classes a row a method.

    Raises:
        ValueError: If there is no text, or are not four images a class.
    """
    if features.text is None or (features.labels.bincount() != 4).any():
        raise ValueError("expected text prototypes and four images a class")
    text = unit(features.text.double())
    order = features.labels.argsort(stable=True)
    images = unit(features.embeddings[order].double()).reshape(len(text), 4, -1)
    found: dict[int, list[Row]] = {}
    for size in CHOICES:
        chosen = choose(len(text), size, first)
        found[size] = []
        for name, eraser in ERASERS.items():
            outcomes: list[Outcome] = []
            proven: list[bool] = []
            for i in tqdm(range(4), unit="split", desc=f"{name}, {size} classes"):
                given = give(chosen, text, images[:, [i, (i + 1) % 4]])
                edit = eraser(given)
                shots, tests = images[:, (i + 2) % 4], images[:, (i + 3) % 4]
                outcomes += [
                    _one_shot(edit[q], text, shots, tests, chosen[q]) for q in range(len(chosen))
                ]
                if i == 0:
                    proven = [_holds(eraser, given[q]) for q in range(PROVEN)]
            found[size].append(Row(name, tuple(outcomes), sum(proven), len(proven)))
    return found


def bundled_depth(clip: Clip) -> list[Row]:
    """The bundled pictures, every class in turn: probes with 8 and with 40 shots a class.

    All domains alike: 8 pictures a class are the user's, 40 others the probe's shots (8 of them
    where it has few), 80 others are tested on.

    Args:
        clip: The bundled model.

    Returns:
        A row a method.
    """
    each = _PROTOTYPES + _MANY + _TESTS
    features = embed(clip, bundled_to_report(each, _SEED))
    text = unit(classifier(clip, features, (clip.words or Words()).class_templates).double())
    # Classes come one after the other, in each of them the domains.
    pictures = unit(features.embeddings.double()).reshape(len(text), len(mini.DOMAINS), each, -1)
    seen, shots, tests = pictures.split([_PROTOTYPES, _MANY, _TESTS], 2)
    given = give(torch.arange(len(text))[:, None], text, seen.flatten(1, 2))
    few, many, test = (part.flatten(1, 2) for part in (shots[:, :, :_FEW], shots, tests))
    found = []
    for name, eraser in ERASERS.items():
        edit = eraser(given)
        bar = tqdm(range(len(text)), unit="class", desc=name)
        outcomes = [_many_shots(edit[c], text, few, many, test, c) for c in bar]
        proven = [_holds(eraser, given[c]) for c in range(len(text))]
        found.append(Row(name, tuple(outcomes), sum(proven), len(proven)))
    return found


ONE_SHOT = {"nearest mean": ("plain", "centred"), "whitened": ("whitened",)}
"""Columns of the ImageNet table, and the probes of which each shows the better."""

MANY_SHOTS = {
    "nearest mean, 8 shots": ("plain", "centred"),
    **{
        f"logistic regression, {shots} shots": tuple(f"{shots} shots, C={c:g}" for c in _C)
        for shots in (_FEW * len(mini.DOMAINS), _MANY * len(mini.DOMAINS))
    },
}
"""Columns of the table of bundled pictures."""


def table(rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> str:
    """The rows as Markdown.

    Args:
        rows: From `imagenet_depth` or `bundled_depth`.
        columns: `ONE_SHOT` or `MANY_SHOTS`.
    """
    header = ["method", "forgotten, by name", "kept, by name",
              *(f"forgotten, {name}" for name in columns),
              f"kept, {next(iter(columns))}", "certificate holds"]  # fmt: skip
    lines = [
        [
            row.method,
            f"{row.mean('forgotten'):.3f}",
            f"{row.mean('kept'):.4f}",
            *(f"{row.probe(*probes):.3f}" for probes in columns.values()),
            f"{row.mean('kept_probe'):.3f}",
            f"{row.proven} of {row.tried}",
        ]
        for row in rows
    ]
    return markdown(header, lines)


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Every choice of every method."""
    return {
        row.method: {
            "outcomes": [asdict(one) for one in row.outcomes],
            "certificates": [row.proven, row.tried],
        }
        for row in rows
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Kept accuracy lost against what the nearest mean finds, as a PNG.

    Args:
        rows: The ImageNet rows for one number of forgotten classes.
        path: File to write.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    start = next(row for row in rows if row.method == "untouched").mean("kept")
    at = {
        row.method: (100 * (start - row.mean("kept")), row.probe(*ONE_SHOT["nearest mean"]))
        for row in rows
    }
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, style, colour in (
        ("two_sided", "o-", "#0072B2"),
        ("two_sided without the name", "s--", "#56B4E9"),
    ):
        points = [at["hull"], *(one for key, one in at.items() if key.startswith(f"{name}, "))]
        axes.plot(*zip(*points, strict=True), style, color=colour, label=name, markersize=4)
    for name, marker, colour in (
        ("hull", "D", "#000000"),
        ("untouched", "*", "#009E73"),
        ("nullspace, text + visual", "v", "#D55E00"),
        ("leace on images, then hull", "^", "#CC79A7"),
    ):
        axes.plot(*at[name], marker, color=colour, label=name, linestyle="none")
    axes.set_xscale("symlog", linthresh=1)  # the peers lie far out
    axes.set(xlabel="points of kept accuracy lost, by name", xlim=(-0.1, 40), ylim=(0, None))
    axes.set_xticks([0, 0.5, 1, 3, 10, 30], ["0", "0.5", "1", "3", "10", "30"])
    axes.set_ylabel("forgotten images found\nby one image of their class")
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    Image.open(path).quantize(48).save(path, optimize=True)


def _holds(eraser: Eraser, given: Given) -> bool:
    operator = eraser(given).operator().float()
    return bool(certify(operator, None, given.forget, given.keep).holds.all())


def _one_shot(
    edit: Edit,
    text: Float[Tensor, "classes dim"],
    shots: Float[Tensor, "classes dim"],
    tests: Float[Tensor, "classes dim"],
    chosen: Int[Tensor, " m"],
) -> Outcome:
    """One image a class to look for the class by, and one to look for."""
    own = torch.arange(len(text))
    kept = ~torch.isin(own, chosen)
    shot, test = edit.apply(shots).float(), edit.apply(tests).float()
    named = predict(test, text) == own
    mean = shot.mean(0)
    # In directions along which images differ little a difference counts for more (Mahalanobis).
    spread = regularised(covariance(shot), _WHITENING)
    white = torch.linalg.inv(torch.linalg.cholesky(spread)).mT
    gone, sample = test[chosen], own[kept][::_EVERY]
    probes = {
        "plain": predict(gone, shot),
        "centred": predict(gone - mean, shot - mean),
        "whitened": predict((gone - mean) @ white, (shot - mean) @ white),
    }
    return Outcome(
        _share(named[chosen]),
        _share(named[kept]),
        {name: _share(found == chosen) for name, found in probes.items()},
        _share(predict(test[sample] - mean, shot - mean) == sample),
    )


def _many_shots(
    edit: Edit,
    text: Float[Tensor, "classes dim"],
    few: Float[Tensor, "classes k dim"],
    many: Float[Tensor, "classes n dim"],
    tests: Float[Tensor, "classes t dim"],
    gone: int,
) -> Outcome:
    """Several images a class to fit a probe on."""
    few, many, tests = (unit(edit.apply(part)) for part in (few, many, tests))
    own = torch.arange(len(text)).repeat_interleave(tests.shape[1])
    test, forgotten = tests.flatten(0, 1), own == gone
    shot, mean = few.mean(1), few.flatten(0, 1).mean(0)
    found = {"plain": predict(test, shot), "centred": predict(test - mean, shot - mean)}
    for shots in (few, many):
        for c in _C:
            found[f"{shots.shape[1]} shots, C={c:g}"] = _logistic(shots, test, c)
    named = predict(test, text) == own
    return Outcome(
        _share(named[forgotten]),
        _share(named[~forgotten]),
        {name: _share((one == own)[forgotten]) for name, one in found.items()},
        _share((found["centred"] == own)[~forgotten]),
    )


def _logistic(
    shots: Float[Tensor, "classes k dim"], test: Float[Tensor, "n dim"], c: float
) -> Int[Tensor, " n"]:
    """Logistic regression over all classes."""
    from sklearn.linear_model import LogisticRegression

    labels = torch.arange(len(shots)).repeat_interleave(shots.shape[1])
    fitted = LogisticRegression(C=c, max_iter=2000).fit(shots.flatten(0, 1).numpy(), labels.numpy())
    return torch.from_numpy(fitted.predict(test.numpy()))


def _share(right: Bool[Tensor, " n"]) -> float:
    return float(right.double().mean())
