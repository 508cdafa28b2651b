"""Zero-shot recognition against plain loops, scikit-learn and real CLIP features."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score
from torch import Tensor

from nullspace_unlearn.evaluate.zeroshot import Grid, accuracy_grid, grid_to_json, predict, top_k
from nullspace_unlearn.features import read_features

ZERO = torch.zeros(1, dtype=torch.int64)


def task(seed: int, n: int = 40, classes: int = 7, domains: int = 3) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 5, generator=random),
        torch.randn(classes, 5, generator=random),
        torch.randint(classes, (n,), generator=random),
        torch.randint(domains, (n,), generator=random),
    )


def nearest(embeddings: Tensor, prototypes: Tensor) -> list[int]:
    """The same by a plain double loop in double precision."""
    best = []
    for z in embeddings.double():
        cosines = [float(z @ t / z.norm() / t.norm()) for t in prototypes.double()]
        best.append(cosines.index(max(cosines)))
    return best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 50))
def test_prediction_is_the_nearest_prototype_at_any_scale(seed: int, batch: int) -> None:
    embeddings, prototypes, *_ = task(seed)
    wanted = nearest(embeddings, prototypes)
    assert predict(embeddings, prototypes, batch).tolist() == wanted
    random = torch.Generator().manual_seed(seed)
    row, column = (
        10 ** (8 * torch.rand(len(x), 1, generator=random) - 4) for x in (embeddings, prototypes)
    )
    assert predict(embeddings * row, prototypes * column, batch).tolist() == wanted
    assert predict(-embeddings, prototypes).tolist() != wanted


def test_a_batch_of_models_is_each_by_itself() -> None:
    tasks = [task(seed) for seed in range(3)]
    together = predict(torch.stack([t[0] for t in tasks]), torch.stack([t[1] for t in tasks]), 7)
    assert together.tolist() == [predict(t[0], t[1]).tolist() for t in tasks]


def test_half_precision_embeddings_are_scored_in_float32() -> None:
    angles = torch.tensor([0.02, 0.01])
    prototypes = torch.stack([angles.cos(), angles.sin()], 1)
    embeddings = torch.tensor([[1.0, 0.0]]).half()
    in_half = embeddings @ prototypes.half().T
    assert in_half[0, 0] == in_half[0, 1]
    assert predict(embeddings, prototypes).tolist() == nearest(embeddings, prototypes) == [1]


def test_no_images_give_no_predictions() -> None:
    assert predict(torch.zeros(0, 5), torch.ones(2, 5)).shape == (0,)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60))
def test_the_grid_is_the_count_of_a_double_loop(seed: int, n: int) -> None:
    _, _, labels, domains = task(seed, n)
    predicted = task(seed + 1, n)[2]
    grid = accuracy_grid(predicted, labels, domains, 7, 3)
    for c in range(7):
        for d in range(3):
            cell = [i for i in range(n) if labels[i] == c and domains[i] == d]
            right = sum(int(predicted[i] == c) for i in cell)
            assert grid.count[c, d] == len(cell)
            assert float(grid.accuracy[c, d]) == (right / len(cell) if cell else 0)
    assert grid.acc1 == pytest.approx(accuracy_score(labels, predicted))
    recall = recall_score(labels, predicted, labels=labels.unique(), average="macro")
    assert grid.mean_per_class_recall == pytest.approx(recall)
    assert grid.mean(torch.zeros(7, 3, dtype=torch.bool)) is None


def test_acc1_and_recall_differ_where_classes_are_uneven() -> None:
    labels = torch.tensor([0] * 9 + [1])
    grid = accuracy_grid(torch.zeros(10).long(), labels, None, 3)
    assert (grid.acc1, grid.mean_per_class_recall) == (0.9, 0.5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 7), batch=st.integers(1, 50))
def test_top_k_is_scikit_learns(seed: int, k: int, batch: int) -> None:
    embeddings, prototypes, labels, _ = task(seed)
    scores = embeddings @ (prototypes / prototypes.norm(dim=1, keepdim=True)).T
    if k < 7:
        wanted = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    else:
        wanted = 1.0
    assert top_k(embeddings, prototypes, labels, k, batch) == pytest.approx(wanted)


def test_json_has_no_nan_and_says_nothing_of_empty_cells() -> None:
    grid = accuracy_grid(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), None, 6)
    names = list("abcdef")
    values = grid_to_json(grid, names, ["all"], acc5=0.75)
    assert json.loads(json.dumps(values, allow_nan=False)) == {
        "classes": names,
        "domains": ["all"],
        "accuracy": [[0.5], [1.0], [None], [None], [None], [None]],
        "count": [[2], [1], [0], [0], [0], [0]],
        "metrics": {"acc1": pytest.approx(2 / 3), "acc5": 0.75, "mean_per_class_recall": 0.75},
    }
    assert "acc5" not in grid_to_json(grid, names, ["all"])["metrics"]
    five = Grid(grid.accuracy[:5], grid.count[:5])
    assert "acc5" not in grid_to_json(five, names[:5], ["all"], acc5=1.0)["metrics"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict(torch.ones(2, 3), torch.ones(2, 4)), "must have one dim"),
        (lambda: predict(torch.ones(3), torch.ones(2, 3)), "must have one dim"),
        (lambda: predict(torch.ones(2, 3), torch.ones(0, 3)), "at least 1 class"),
        (lambda: predict(torch.ones(2, 3), torch.ones(2, 3), 0), "1 row at once"),
        (lambda: top_k(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2), 5), "from 1 to 2"),
        (lambda: accuracy_grid(*[torch.tensor([0, 2])] * 2, None, 2), "from 0 to 1, got 0 to 2"),
        (lambda: accuracy_grid(*[torch.tensor([0, 1])] * 3, 2, 1), "domains must be from 0 to 0"),
        (lambda: accuracy_grid(torch.zeros(3), torch.zeros(2), None, 1), "of one length"),
        (lambda: grid_to_json(accuracy_grid(ZERO, ZERO, None, 2), "ab", "ab"), "2 domain"),
    ],
)
def test_errors(
    call: Callable[[], Any], message: str, unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        call()


def test_real_clip_on_imagenet(shared: Path) -> None:
    path = shared / "data" / "clip_vitb32" / "imagenet_4shot.npz"
    if not path.is_file():
        pytest.skip("the CLIP features are not beside the project")
    read = read_features(path)
    assert read.text is not None
    grid = accuracy_grid(predict(read.embeddings, read.text), read.labels, None, 1000)
    assert grid.count.unique().tolist() == [4]
    assert grid.acc1 == pytest.approx(0.611, abs=5e-4)
    # Every class has as many images, so the two must agree.
    assert grid.mean_per_class_recall == pytest.approx(grid.acc1)
    assert grid.acc1 < top_k(read.embeddings, read.text, read.labels) < 1
    wrong = accuracy_grid(predict(read.embeddings, read.text.flip(0)), read.labels, None, 1000)
    assert wrong.acc1 < 0.01
