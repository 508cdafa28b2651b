"""SalUn: which weights train, which labels are drawn, and a run on the bundled model."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small import CLASSES, DOMAINS, request
from torch import Tensor

from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train.loop import train
from nullspace_unlearn.train.salun import SalUn, forget_gradients, relabel, salient
from nullspace_unlearn.train.task import Task, with_weights
from nullspace_unlearn.train.weights import Weights, tower_keys


@pytest.fixture(scope="module")
def task() -> Task:
    return request(classes=("dog",))


def found(task: Task, batch_size: int = 32) -> list[Tensor]:
    """Gradients of the image tower's parameters, in their order."""
    keys = tower_keys(task.clip.model, "visual")
    student = with_weights(task, Weights(task.clip.model, keys))
    return forget_gradients(task, student, batch_size)


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 5))
def test_so_many_weights_are_salient_whatever_the_ties(
    seed: int, share: float, levels: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [
        torch.randint(-levels, levels + 1, shape, generator=generator).float()
        for shape in ((3, 4), (7,), (2, 1, 5))
    ]
    masks = salient(gradients, share)
    assert [mask.shape for mask in masks] == [gradient.shape for gradient in gradients]
    chosen = torch.cat([mask.flatten() for mask in masks])
    sizes = torch.cat([gradient.abs().flatten() for gradient in gradients])
    assert chosen.sum() == round(share * 29)
    if 0 < chosen.sum() < 29:
        assert sizes[chosen].min() >= sizes[~chosen].max()


def test_one_threshold_is_for_all_tensors() -> None:
    small, large = torch.tensor([0.1, -0.4, 0.2]), torch.tensor([[-3.0], [2.0], [1.0]])
    masks = salient([small, large], 2 / 3)
    assert masks[0].tolist() == [False, True, False] and bool(masks[1].all())
    # A threshold for each tensor would choose two of each.
    assert [int(salient([one], 2 / 3)[0].sum()) for one in (small, large)] == [2, 2]


def test_the_gradients_are_those_of_the_forgotten_images(task: Task) -> None:
    """Oracle: the stock model's own parameters, trained in place in one batch."""
    model = copy.deepcopy(task.clip.model).requires_grad_()
    chosen = (task.shots.labels == 0).nonzero()[:, 0]
    features = model.encode_image(task.shots.read(chosen), normalize=True)
    logits = model.logit_scale.exp().detach() * features @ task.prototypes.mT
    F.cross_entropy(logits, task.shots.labels[chosen], reduction="sum").backward()
    keys = tower_keys(model, "visual")
    expected = torch.cat([model.get_parameter(key).grad.flatten() for key in keys])
    other = request(classes=("car",))
    for some, batch_size in ((task, 32), (task, 4), (other, 32)):
        ours = torch.cat([gradient.flatten() for gradient in found(some, batch_size)])
        apart = float((ours - expected).norm() / expected.norm())
        assert (apart < 1e-3) == (some is task)


def test_the_weights_that_are_not_salient_stay_to_the_bit(task: Task) -> None:
    short = replace(task, validation=task.validation.subset(torch.arange(0)))
    keys = tower_keys(task.clip.model, "visual")
    gradients = found(task)
    for share in (0.1, 0.5, 1.0):
        trained = train(SalUn(lr=1e-4, epochs=1, share=share), short, quiet=True).clip
        moved = [trained.model.get_parameter(k) != task.clip.model.get_parameter(k) for k in keys]
        flat = torch.cat([one.flatten() for one in moved])
        mask = torch.cat([one.flatten() for one in salient(gradients, share)])
        assert mask.sum() == round(share * len(mask))
        assert not flat[~mask].any() and flat[mask].float().mean() > 0.9
        if share == 1.0:  # the control: without a mask the others move as well
            half = torch.cat([one.flatten() for one in salient(gradients, 0.5)])
            assert flat[~half].float().mean() > 0.9


@pytest.mark.parametrize(
    "forget",
    [
        {"classes": ("dog", "fish")},
        {"classes": ("dog", "fish"), "domains": ("sketch",)},
        {"domains": ("sketch",)},
    ],
    ids=["global", "cell", "domain"],
)
def test_labels_are_drawn_from_what_stays(forget: dict[str, tuple[str, ...]]) -> None:
    mask = Forget(**forget).mask(CLASSES, DOMAINS)
    cells = mask.nonzero().repeat(2000, 1)
    labels, domains = cells[:, 0], cells[:, 1]
    drawn = relabel(mask, labels, domains, torch.Generator().manual_seed(0))
    assert not (drawn == labels).any()
    whole = bool(mask[:, domains[0]].all())
    assert bool(mask[drawn, domains].any()) == whole
    for label in labels.unique().tolist():
        allowed = [c for c in range(4) if c != label and (whole or c not in (0, 3))]
        counts = [int((drawn[labels == label] == c).sum()) for c in allowed]
        assert sum(counts) == (labels == label).sum()
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # The controls: another draw differs, and labels drawn from all classes would be their own.
    assert not torch.equal(drawn, relabel(mask, labels, domains, torch.Generator().manual_seed(1)))
    anything = torch.randint(4, labels.shape, generator=torch.Generator().manual_seed(0))
    assert (anything == labels).any()


def test_drawing_from_nothing() -> None:
    generator, none = torch.Generator(), torch.zeros(0, dtype=torch.int64)
    assert not len(relabel(torch.ones(2, 1, dtype=torch.bool), none, none, generator))
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least 2 classes"):
        relabel(torch.ones(1, 1, dtype=torch.bool), one, one, generator)
    assert relabel(torch.ones(2, 1, dtype=torch.bool), one, one, generator) == 1


@pytest.mark.parametrize(
    "forget",
    [
        {"classes": ("dog",)},
        {"classes": ("dog",), "domains": ("sketch",)},
        {"domains": ("sketch",)},
    ],
    ids=["global", "cell", "domain"],
)
def test_it_takes_every_kind_of_request(forget: dict[str, tuple[str, ...]]) -> None:
    task = request(**forget)
    assert task.forget.paradigm in SalUn.paradigms
    trained = train(SalUn(epochs=1), task, quiet=True)
    assert trained.diverged is None
    assert all(math.isfinite(value) for value in trained.log[0]["loss"].values())


@pytest.mark.slow
def test_a_run_forgets_a_class_and_its_result_loads_elsewhere(task: Task, tmp_path: Path) -> None:
    method = SalUn(lr=3e-4, epochs=3, batch_size=16)
    trained = train(method, task, quiet=True)
    control = train(replace(method, forget=0.0), task, quiet=True)
    ours, theirs = trained.log[-1]["validation"], control.log[-1]["validation"]
    assert theirs["forgotten"] - ours["forgotten"] > 0.4
    assert ours["kept"] > 0.8 and theirs["kept"] > 0.8

    (said,) = trained.clip.history.edits
    assert said["method"] == "salun" and said["trained"] and said["side"] == "visual"
    assert said["numbers"]["share"] == 0.5 and said["request"]["classes"] == ["dog"]
    folder = trained.clip.save(tmp_path / "model")
    stock = open_clip.create_model(f"local-dir:{folder}").eval()
    images = task.shots.read(torch.arange(4))
    with torch.no_grad():
        features = stock.encode_image(images)
    assert torch.allclose(features, trained.clip.encode_image(images), atol=1e-4)
    assert not torch.allclose(features, task.clip.encode_image(images), atol=1e-2)


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        SalUn(share=share)
    SalUn(share=1.0)
