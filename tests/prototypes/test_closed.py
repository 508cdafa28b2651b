"""Closed-form prototypes: where images lie, moved as the prompts say, by the shortest way."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "clip"))

import pico  # noqa: E402

from nullspace_unlearn import erasers  # noqa: E402
from nullspace_unlearn.clip import load  # noqa: E402
from nullspace_unlearn.data import mini  # noqa: E402
from nullspace_unlearn.data.folders import read_folder  # noqa: E402
from nullspace_unlearn.features import Features  # noqa: E402
from nullspace_unlearn.features.embed import embed  # noqa: E402
from nullspace_unlearn.prototypes import cell_prototypes  # noqa: E402
from nullspace_unlearn.prototypes.closed import closed_prototypes  # noqa: E402
from nullspace_unlearn.prototypes.nearness import nearness  # noqa: E402
from nullspace_unlearn.prototypes.starts import start  # noqa: E402

CLASSES = ("car", "dog", "tree")
DOMAINS = {"photo": "photo", "sk": "sketch"}
TEMPLATES = ("a {domain} of a {class}.", "a {class}, {domain}")
IMAGES = 5
# A projection 128 -> 64; 64 -> 12 with bias; none after attention pooling; one of lower rank.
MODELS = ("nsu-mini", "RN50", "ViT-B-16-SigLIP", "narrow")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    def build(name: str) -> Any:
        if name == "nsu-mini":
            return load(name, device="cpu")
        if name != "narrow":
            return load(pico.write(name, tmp_path_factory.mktemp("m") / "model"), device="cpu")
        return _narrow(load("nsu-mini", device="cpu"))

    return {name: build(name) for name in MODELS}


def _narrow(clip: Any) -> Any:
    """The bundled model with a projection of rank 20: what it reaches is a part of the space."""
    matrix = clip.projection().matrix()
    right = torch.linalg.svd(matrix, full_matrices=False).Vh
    return clip.fold(erasers.nullspace(right[20:]))


def by_hand(clip) -> tuple[np.ndarray, np.ndarray]:
    """The pictures' mean hidden feature and the wanted embedding, in plain numpy."""
    rows, columns = clip.image_size
    mean, std = (np.array(clip.config["preprocess_cfg"][k])[:, None, None] for k in ("mean", "std"))
    hidden, lengths, kinds = [], [], []
    for kind in (0, 1, 3):
        pixels = [start(rows, columns, 0, kind + 4 * i).numpy() for i in range(IMAGES)]
        images = torch.from_numpy((np.stack(pixels) - mean) / std).float()
        h, z = (
            clip.hidden_image(images).double().numpy(),
            clip.encode_image(images).double().numpy(),
        )
        length = np.linalg.norm(z, axis=1, keepdims=True)
        lengths.append(length)
        hidden.append((h / length).mean(0))
        kinds.append((z / length).mean(0))
    m = np.mean(kinds, 0)
    shared = np.mean([a @ b for i, a in enumerate(kinds) for b in kinds[:i]]) / (m @ m)
    assert 0 < shared < 1
    length = np.mean(lengths)
    text = cell_prototypes(clip, CLASSES, tuple(DOMAINS.values()), TEMPLATES).flatten(0, 1).numpy()
    return length * shared * np.mean(hidden, 0), length * (shared * m + text - text.mean(0))


def make(clip, **options) -> Features:
    return closed_prototypes(clip, CLASSES, DOMAINS, TEMPLATES, images=IMAGES, **options)


@pytest.mark.parametrize("name", MODELS)
def test_the_hidden_feature_is_the_nearest_that_projects_there(models, name):
    """Oracle: scipy's lstsq, least squares of least norm, from the pictures' mean on."""
    clip = models[name]
    made = make(clip)
    mean, wanted = by_hand(clip)
    projection = clip.projection()
    matrix = projection.matrix().numpy()
    bias = 0 if projection.bias() is None else projection.bias().numpy()
    rank = 20 if name == "narrow" else min(matrix.shape)
    step, _, found, _ = scipy.linalg.lstsq(matrix.T, (wanted - mean @ matrix - bias).T, cond=1e-5)
    assert found == rank
    size = np.linalg.norm(step, axis=0).max()
    np.testing.assert_allclose(made.hidden.numpy(), mean + step.T, atol=1e-4 * size, rtol=1e-4)
    # It projects to the embedding, and that is what was wanted wherever W reaches.
    z = made.embeddings.double()
    torch.testing.assert_close(clip.project(made.hidden.double()), z, rtol=1e-5, atol=1e-4)
    reach = scipy.linalg.orth(matrix.T, rcond=1e-5)
    miss = z.numpy() - wanted
    scale = np.linalg.norm(wanted, axis=1).max()
    assert np.abs(miss @ reach).max() < 1e-5 * scale
    assert (np.abs(miss).max() < 1e-5 * scale) == (rank == matrix.shape[1])
    # Nothing that projects alike is nearer to the mean: Pythagoras, the rest lies in W's null space
    null = scipy.linalg.null_space(matrix.T, rcond=1e-5)
    moved = made.hidden.double().numpy() - mean
    assert null.shape[1] == len(matrix) - rank
    assert np.abs(moved @ null).max(initial=0) < 1e-4 * size
    if null.shape[1]:  # control: not so measured from zero
        assert np.abs(made.hidden.double().numpy() @ null).max() > 1e-3 * size


def test_what_an_edit_removed_is_not_divided_by(models):
    """Control: numpy's cut-off, meant for matrices in float64, takes rounding for a direction."""
    clip, edited = models["nsu-mini"], models["narrow"]
    before, after = make(clip), make(edited)
    assert after.hidden.norm(dim=-1).max() < 2 * before.hidden.norm(dim=-1).max()
    matrix = edited.projection().matrix().numpy()
    mean, wanted = by_hand(edited)
    naive = (wanted - mean @ matrix) @ np.linalg.pinv(matrix)
    assert np.linalg.norm(naive, axis=1).min() > 1e3 * float(after.hidden.norm(dim=-1).max())


def test_rows_are_cells_in_order_and_differ_as_the_prompts_do(models):
    clip = models["nsu-mini"]
    made = make(clip)
    assert made.embeddings.shape == (6, 64) and made.hidden.shape == (6, 128)
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2] and made.domains.tolist() == [0, 1] * 3
    assert (made.class_names, made.domain_names) == (CLASSES, ("photo", "sk"))
    assert made.provenance["images"].startswith("closed form") and made.provenance["model"]
    text = cell_prototypes(clip, CLASSES, ("photo", "sketch"), TEMPLATES).flatten(0, 1)
    z = made.embeddings.double()
    ours, theirs = z[:, None] - z, text[:, None] - text
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
    off = ~torch.eye(6, dtype=torch.bool)
    assert cosine[off].min() > 1 - 1e-5
    swapped = torch.nn.functional.cosine_similarity(ours.flip(0), theirs, dim=-1)
    assert swapped[off].min() < 0.9  # control


def test_the_same_every_time_and_other_pictures_by_seed(models):
    clip = models["nsu-mini"]
    first, same, other = make(clip), make(clip), make(clip, seed=1)
    assert torch.equal(first.embeddings, same.embeddings)
    assert torch.equal(first.hidden, same.hidden)
    assert not torch.allclose(first.hidden, other.hidden)


def test_they_are_nearer_to_images_than_prompts_are(models, tmp_path):
    """Oracle: the nearness of prompts and of a few other pictures of the cells themselves."""
    clip = models["nsu-mini"]
    for name, seeds in (("real", range(7000, 7006)), ("few", range(7100, 7104))):
        mini.write_images(tmp_path / name, CLASSES, ("photo", "sketch"), seeds)
    real, few = (
        embed(clip, read_folder(tmp_path / name), quiet=True, hidden=True)
        for name in ("real", "few")
    )
    words = {"photo": "photo", "sketch": "sketch"}
    made = closed_prototypes(clip, CLASSES, words, TEMPLATES)
    text = cell_prototypes(clip, CLASSES, tuple(words), TEMPLATES).flatten(0, 1)
    prompts = replace(made, embeddings=text.float(), hidden=None)
    closed, plain, best = (nearness(rows, real) for rows in (made, prompts, few))
    assert closed.embedding.cosine_real_mean > plain.embedding.cosine_real_mean + 0.03
    assert closed.hidden.cosine > 0.6 and closed.hidden.rank == 1
    assert best.hidden.cosine > closed.hidden.cosine  # control: real ones are better


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("car",), "domains": {"photo": "photo"}}, "at least 2 cells .* 1 classes x 1"),
        ({"classes": ("car", " car")}, "class named twice"),
        ({"domains": {"": "photo", "sketch": "sketch"}}, "empty domain name"),
        ({"templates": ()}, "1 template, got .* 0 templates"),
        ({"templates": ("a {class}",)}, "must hold {class} and {domain}"),
        ({"images": 0}, "images must be at least 1, got 0"),
    ],
)
def test_bad_input(models, change, message):
    given = {"classes": CLASSES, "domains": DOMAINS, "templates": TEMPLATES, **change}
    with pytest.raises(ValueError, match=message):
        closed_prototypes(models["nsu-mini"], **given)
