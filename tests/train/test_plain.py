"""The plain baselines: what they look at, and that they do what they are named after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from small import request
from torch import Tensor

from nullspace_unlearn.train.loop import train
from nullspace_unlearn.train.method import TrainedMethod
from nullspace_unlearn.train.plain import Ascent, Finetune, MemoriseForget
from nullspace_unlearn.train.shots import from_tensors
from nullspace_unlearn.train.task import Task

METHODS = (
    Ascent(lr=1e-4, epochs=4, batch_size=3),
    MemoriseForget(lr=3e-4, epochs=4, batch_size=4),
    Finetune(lr=1e-4, epochs=2),
)


@pytest.fixture(scope="module")
def task() -> Task:
    return request(classes=("dog",))


def parameters(method: TrainedMethod, task: Task, replaced: Iterable[int] = ()) -> Tensor:
    """All parameters after a run without validation, some images replaced by noise."""
    images = task.shots.read(torch.arange(len(task.shots)))
    for index in replaced:
        generator = torch.Generator().manual_seed(index)
        images[index] = torch.randn(images[index].shape, generator=generator)
    given = replace(
        task,
        shots=from_tensors(images, task.shots.labels, task.shots.domains),
        validation=task.validation.subset(torch.arange(0)),
    )
    trained = train(replace(method, epochs=1), given, quiet=True).clip  # type: ignore[type-var]
    return torch.cat([value.flatten() for value in trained.model.parameters()])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_looks_at_its_own_images_alone(task: Task, method: TrainedMethod) -> None:
    """Images it does not look at can be anything, and the result is the same to the bit."""
    gone = task.forgotten(task.shots)
    plain = parameters(method, task)
    assert torch.equal(plain, parameters(method, task))
    looks = {True: not isinstance(method, Finetune), False: not isinstance(method, Ascent)}
    for forgotten, seen in looks.items():
        some = (gone == forgotten).nonzero()[:, 0].tolist()
        assert torch.equal(plain, parameters(method, task, some)) != seen


@pytest.mark.slow
@pytest.mark.parametrize("forget", [{"classes": ("dog",)}, {"domains": ("sketch",)}], ids=str)
def test_they_forget_and_fine_tuning_does_not(forget: dict[str, tuple[str, ...]]) -> None:
    task = request(**forget)
    ascent, both, finetune = METHODS
    off = replace(both, forget=0.0)  # the control
    for method, forgets in ((ascent, True), (both, True), (off, False), (finetune, False)):
        found = [epoch["validation"] for epoch in train(method, task, quiet=True).log]
        assert (min(each["forgotten"] for each in found) < 0.7) == forgets, method
        left = max(found, key=lambda each: each["balance"])  # the epoch that training ends with
        assert method is ascent or left["kept"] > 0.6, method


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_result_says_where_it_comes_from_and_loads_elsewhere(
    task: Task, method: TrainedMethod, tmp_path: Path
) -> None:
    short = replace(task, validation=task.validation.subset(torch.arange(0)))
    trained = train(replace(method, epochs=1), short, quiet=True)  # type: ignore[type-var]
    assert trained.clip.changes and not task.clip.changes
    (said,) = trained.clip.history.edits
    assert said["method"] == method.name and said["trained"] and said["side"] == "visual"
    assert said["numbers"]["lr"] == method.lr and said["seed"] == 0
    assert said["request"] == task.forget.to_json() and said["shots"] == task.shots.source
    stock = open_clip.create_model(f"local-dir:{trained.clip.save(tmp_path / 'model')}").eval()
    images = task.shots.read(torch.arange(4))
    with torch.no_grad():
        found = stock.encode_image(images)
    assert torch.allclose(found, trained.clip.encode_image(images), atol=1e-4)
    assert not torch.allclose(found, task.clip.encode_image(images), atol=1e-3)
