"""CLIPErase: its terms against loops and scipy, and a run on the bundled model."""

from __future__ import annotations

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
from small import request
from torch import Tensor

from nullspace_unlearn.train.cliperase import ClipErase, cosine
from nullspace_unlearn.train.loop import train
from nullspace_unlearn.train.losses import contrastive
from nullspace_unlearn.train.task import Minibatch, Task


@pytest.fixture(scope="module")
def task() -> Task:
    return request(classes=("dog",))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_by_pair(logits: list[list[float]], captions: list[int]) -> float:
    """The oracle: each image among all captions, each caption among all images."""
    n, total = len(captions), 0.0
    for rows in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(rows):
            level = math.log(sum(math.exp(x) for x in row))
            fitting = [j for j in range(n) if captions[j] == captions[i]]
            total += sum(level - row[j] for j in fitting) / len(fitting) / n
    return total / 2


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 4))
def test_the_contrastive_loss_is_a_loop(seed: int, n: int, many: int) -> None:
    logits, captions = 3 * randn(n, n, seed=seed), torch.arange(n) % many
    expected = pair_by_pair(logits.tolist(), captions.tolist())
    found = float(contrastive(logits, captions))
    assert math.isclose(found, expected, rel_tol=1e-10, abs_tol=1e-12)
    if n > many:  # the control: as if every image were positive for its own caption alone
        alone = float(contrastive(logits, torch.arange(n)))
        assert not math.isclose(found, alone, rel_tol=1e-6)


def test_where_no_caption_comes_twice_it_is_clips_loss() -> None:
    """Oracle: open_clip's own loss."""
    images, text = (F.normalize(randn(6, 5, seed=seed), dim=-1) for seed in (0, 1))
    stock = open_clip.ClipLoss()(images, text, torch.tensor(7.0, dtype=torch.float64))
    ours = contrastive(7 * images @ text.mT, torch.arange(6))
    assert torch.allclose(ours, stock)
    assert not torch.allclose(contrastive(7 * images @ text.mT, torch.arange(6) // 2), stock)


def test_where_there_is_no_pair_the_terms_are_zero() -> None:
    features = randn(3, 4).requires_grad_()
    for term in (
        contrastive(features[:0] @ features[:0].mT, torch.arange(0)),
        cosine(features[:0], features[:0]),
    ):
        assert term == 0
        (slope,) = torch.autograd.grad(term, features)
        assert torch.equal(slope, torch.zeros_like(slope))
    assert cosine(features, features) > 0


@pytest.mark.parametrize("towers", ["visual", "both"])
def test_the_loss_is_the_papers(task: Task, towers: str) -> None:
    """Oracle: features of the models by `Clip`, then loops and scipy in float64."""
    method = ClipErase(retain=0.5, forget=2.0, consistency=4.0, towers=towers)  # type: ignore[arg-type]
    stage = next(method.stages(task))
    chosen = torch.tensor([0, 4, 7, 8, 9, 13, 20])  # two dogs, the rest stays
    labels, domains = task.shots.labels[chosen], task.shots.domains[chosen]
    images, gone = task.shots.read(chosen), labels == 0
    batch = Minibatch(images, labels, domains, gone, torch.Generator())
    assert gone.sum() == 2
    untouched = {name: value.item() for name, value in stage.loss(batch).items()}
    assert abs(untouched["consistency"]) < 1e-5
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in stage.student.module.parameters():
            value += 0.01 * torch.randn(value.shape, generator=generator)
    terms = {name: value.item() for name, value in stage.loss(batch).items()}

    scale, logits = task.clip.logit_scale, []
    for clip in (stage.student.result({}), task.clip):
        seen = F.normalize(clip.encode_image(images).double(), dim=-1)
        named = replace(task, clip=clip).prototypes.double()
        logits.append(scale * seen[~gone] @ named[labels[~gone]].mT)
        if clip is not task.clip:
            cosines = (seen @ named.mT)[gone, labels[gone]]
    after, before = logits
    moved = sum(
        scipy.stats.entropy(p.softmax(-1).numpy(), q.softmax(-1).numpy(), axis=-1).mean()
        for p, q in ((before, after), (before.mT, after.mT))
    )
    expected = {
        "retain": 0.5 * pair_by_pair(after.tolist(), labels[~gone].tolist()),
        "forget": 2.0 * float(cosines.mean()),
        "consistency": 4.0 * moved,
    }
    assert terms.keys() == expected.keys() == untouched.keys()
    for name, value in expected.items():
        assert math.isclose(terms[name], value, rel_tol=1e-3, abs_tol=1e-5), name
        assert not math.isclose(untouched[name], value, rel_tol=1e-2), name


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
    assert task.forget.paradigm in ClipErase.paradigms
    trained = train(ClipErase(lr=3e-5, epochs=1), task, quiet=True)
    assert trained.diverged is None
    assert all(math.isfinite(value) for value in trained.log[0]["loss"].values())


@pytest.mark.slow
def test_a_run_forgets_a_class_and_its_result_loads_elsewhere(task: Task, tmp_path: Path) -> None:
    method = ClipErase(lr=2e-4, epochs=3, batch_size=4)
    trained = train(method, task, quiet=True)
    control = train(replace(method, forget=0.0), task, quiet=True)
    ours, theirs = trained.log[-1]["validation"], control.log[-1]["validation"]
    assert theirs["forgotten"] - ours["forgotten"] > 0.4
    assert ours["kept"] > 0.8 and theirs["kept"] > 0.8

    assert {change.side for change in trained.clip.changes} == {"visual", "text"}
    (said,) = trained.clip.history.edits
    assert said["method"] == "cliperase" and said["trained"] and said["side"] == "both"
    assert said["numbers"]["lr"] == 2e-4 and said["request"]["classes"] == ["dog"]
    folder = trained.clip.save(tmp_path / "model")
    stock = open_clip.create_model(f"local-dir:{folder}").eval()
    images = task.shots.read(torch.arange(4))
    with torch.no_grad():
        found = stock.encode_image(images)
    assert torch.allclose(found, trained.clip.encode_image(images), atol=1e-4)
    assert not torch.allclose(found, task.clip.encode_image(images), atol=1e-2)


def test_towers_say_what_changes(task: Task) -> None:
    sides = {}
    for towers in ("visual", "text", "both"):
        short = replace(task, validation=task.validation.subset(torch.arange(0)))
        method = ClipErase(lr=1e-5, epochs=1, towers=towers)
        sides[towers] = {change.side for change in train(method, short, quiet=True).clip.changes}
    assert sides == {"visual": {"visual"}, "text": {"text"}, "both": {"visual", "text"}}
