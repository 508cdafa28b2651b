"""Fused predictions: the arg max of a float64 loop over edited embeddings, whatever the tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import hull, nullspace
from nullspace_unlearn.evaluate import fused
from nullspace_unlearn.evaluate.fused import count_right, predict_edits
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid
from nullspace_unlearn.linalg import unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(n: int = 300, classes: int = 40, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Images near prototypes that share a large part: embeddings, prototypes, labels."""
    prototypes = unit(randn(classes, dim, seed=1) + 2 * randn(dim, seed=2))
    labels = torch.arange(n) % classes
    return prototypes[labels] + 0.15 * randn(n, dim, seed=3), prototypes, labels


def loop(embeddings: Tensor, prototypes: Tensor, edits: Edit, hidden: Tensor | None = None):
    """One edit at a time, every embedding edited, every score computed."""
    rows = unit(prototypes)
    each = range(edits.batch_shape[0])
    return torch.stack([(edits[e].apply(embeddings, hidden) @ rows.T).argmax(-1) for e in each])


def random_edits(size: float, rank: int, edits: int = 7, dim: int = 16) -> Edit:
    read, write = randn(edits, dim, rank, seed=4), randn(edits, dim, rank, seed=5)
    return Edit(size * unit(read.mT).mT, unit(write.mT).mT)


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("size", [0.0, 0.01, 0.3, 30.0])
def test_it_is_the_arg_max_of_all_scores(size: float, rank: int) -> None:
    embeddings, prototypes, _ = world()
    edits = random_edits(size, rank)
    expected = loop(embeddings, prototypes, edits)
    assert torch.equal(predict_edits(embeddings, prototypes, edits), expected)
    if size >= 0.3:  # the control: the edits do something
        assert not torch.equal(expected[0], (embeddings @ unit(prototypes).T).argmax(-1))


@pytest.mark.parametrize("few", [1, 4])
@pytest.mark.parametrize("tile", [1, 1 << 20])
def test_tiles_do_not_show(few: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, prototypes, _ = world()
    edits = random_edits(0.3, 2)
    expected = loop(embeddings, prototypes, edits)
    for name, value in {
        "_TILE": tile, "_WRITES": tile, "_IMAGES": 77, "_NEAREST": few, "_MOVED": few
    }.items():  # fmt: skip
        monkeypatch.setattr(fused, name, value)
    assert torch.equal(predict_edits(embeddings, prototypes, edits), expected)


def test_without_the_bound_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, prototypes, _ = world()
    edits = random_edits(3.0, 2)
    expected = loop(embeddings, prototypes, edits)
    scores = embeddings @ unit(prototypes).T
    looked = scores.topk(fused._NEAREST).indices
    assert not (looked[None] == expected[..., None]).any(-1).all()
    assert torch.equal(predict_edits(embeddings, prototypes, edits), expected)


def test_the_bound_spares_most_images(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, prototypes, _ = world(n=2000, classes=200)
    full, addmm = [], torch.addmm

    def spy(*given, **named):
        full.append(len(given[0]))
        return addmm(*given, **named)

    monkeypatch.setattr(torch, "addmm", spy)
    predict_edits(embeddings, prototypes, random_edits(0.003, 2))
    assert sum(full) < 0.1 * 7 * 2000
    full.clear()
    predict_edits(embeddings, prototypes, random_edits(30.0, 2))
    assert sum(full) > 0.5 * 7 * 2000  # the control: nothing is spared where all changes


def test_edits_of_the_hidden_space() -> None:
    embeddings, prototypes, _ = world()
    hidden = randn(300, 24, seed=6)
    edits = Edit(0.1 * randn(5, 24, 2, seed=7), randn(5, 16, 2, seed=8), "hidden")
    expected = loop(embeddings, prototypes, edits, hidden)
    assert torch.equal(predict_edits(embeddings, prototypes, edits, hidden), expected)
    other = predict_edits(embeddings, prototypes, edits, hidden.flip(0))
    assert not torch.equal(other, expected)


def test_of_equal_scores_the_first_class_is_named() -> None:
    embeddings, prototypes, _ = world(classes=30)
    twice = torch.cat([prototypes, prototypes])
    for size in (0.01, 3.0):
        named = predict_edits(embeddings, twice, random_edits(size, 1))
        assert (named < 30).all()
        assert torch.equal(named, predict_edits(embeddings, prototypes, random_edits(size, 1)))


@pytest.mark.parametrize("with_domains", [True, False])
def test_counts_are_those_of_the_grid(with_domains: bool) -> None:
    embeddings, prototypes, labels = world()
    domains = torch.arange(300) % 3 if with_domains else None
    shape = (40, 3 if with_domains else 1)
    edits = nullspace(prototypes[:7, None])
    right = count_right(embeddings, prototypes, labels, domains, shape, edits)
    for e, predicted in enumerate(loop(embeddings, prototypes, edits)):
        grid = accuracy_grid(predicted, labels, domains, *shape)
        assert torch.equal(right[e], (grid.accuracy * grid.count).round().long())


def test_half_precision_embeddings_and_scaled_rows() -> None:
    embeddings, prototypes, _ = world()
    edits = random_edits(0.3, 2)
    half = embeddings.half()
    expected = loop(half.double(), prototypes, edits)
    scaled = prototypes * torch.linspace(0.1, 9, 40)[:, None]
    assert torch.equal(predict_edits(half, scaled, edits), expected)


def test_bad_input_is_named(unchecked) -> None:
    embeddings, prototypes, labels = world()
    edits = random_edits(0.3, 2)
    with unchecked():
        with pytest.raises(ValueError, match=r"must be a batch \[edits\], got \[\]"):
            predict_edits(embeddings, prototypes, edits[0])
        with pytest.raises(ValueError, match="read 16 and write 16 dimensions"):
            predict_edits(embeddings[:, :8], prototypes, edits)
        with pytest.raises(ValueError, match="pass hidden="):
            hidden = Edit(randn(2, 24, 1), randn(2, 16, 1), "hidden")
            predict_edits(embeddings, prototypes, hidden)
        with pytest.raises(ValueError, match="fold them instead"):
            predict_edits(embeddings, prototypes, Edit(edits.read, edits.write, "mlp"))
        with pytest.raises(ValueError, match="as many labels"):
            count_right(embeddings, prototypes, labels[:5], None, (40, 1), edits)


def test_real_embeddings(imagenet: tuple[Tensor, Tensor, Tensor]) -> None:
    images, labels, text = imagenet
    edits = hull(text[:3, None], text, keep_mask=~torch.eye(1000).bool()[:3])
    named = predict_edits(images, text, edits)
    scores = torch.stack([edits[e].apply(images) @ text.T for e in range(3)])
    # Some names are one vector: of those any may be named.
    best = scores.gather(-1, named[..., None])[..., 0]
    assert torch.equal(best, scores.amax(-1))
    for e in range(3):
        assert not (named[e] == e).any()
