"""Lipschitz unlearning: its loss, what moves, how the noise grows; no real image is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import from_bundled
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.train import lipschitz
from nullspace_unlearn.train.lipschitz import (
    SCHEDULE,
    Lipschitz,
    accuracy,
    keep_largest,
    pictures,
    prompts,
    roughness,
)
from nullspace_unlearn.train.loop import Trained, train
from nullspace_unlearn.train.method import Stage
from nullspace_unlearn.train.shots import Shots
from nullspace_unlearn.train.task import Minibatch, Task
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("dog", "car", "fish"), ("photo", "sketch")
SHORT = Lipschitz(epochs=1, pictures=2, noises=2, share=1.0, lr=1e-4)


@pytest.fixture(scope="module")
def task() -> Task:
    """A class is to go everywhere; the real images cannot be read."""
    clip = nsu.load("nsu-mini")
    assert clip.words is not None
    names = {domain: clip.words.domains[domain] for domain in DOMAINS}
    known = clip.words
    words = Words(CLASSES, names, known.class_templates[:2], known.cell_templates[:2])
    shots, _ = from_bundled(clip, CLASSES, DOMAINS, 1, seed=5)

    def unreadable(index: Tensor) -> Tensor:
        raise AssertionError("a real image was read")

    given = replace(shots, read=unreadable)
    return Task(clip, Forget(classes=("dog",)), words, given, shots.subset(torch.arange(0)))


@pytest.fixture(scope="module")
def made(task: Task) -> Shots:
    return pictures(task, SHORT.pictures)


@pytest.fixture
def ready(made: Shots, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are made once for all tests."""
    monkeypatch.setattr(lipschitz, "pictures", lambda task, each: made)


@pytest.fixture(scope="module")
def real(task: Task) -> tuple[Tensor, Tensor]:
    """Pictures that nothing was trained on, and their classes."""
    _, some = from_bundled(task.clip, CLASSES, DOMAINS, 1, 3, seed=5)
    return some.read(torch.arange(len(some))), some.labels


def right(task: Task, clip: nsu.Clip, real: tuple[Tensor, Tensor]) -> Tensor:
    """Accuracy in each class, as the zero-shot classifier of a model has it."""
    images, labels = real
    text = replace(task, clip=clip).prototypes
    named = (unit(clip.encode_image(images)) @ text.mT).argmax(-1)
    return torch.stack([(named[labels == i] == i).double().mean() for i in range(len(CLASSES))])


def values(result: Trained) -> dict[str, Tensor]:
    return dict(result.clip.model.named_parameters())


def batch_of(shots: Shots) -> Minibatch:
    everything = torch.arange(len(shots))
    return Minibatch(
        images=shots.read(everything),
        labels=shots.labels,
        domains=shots.domains,
        forgotten=torch.ones(len(shots), dtype=torch.bool),
        generator=torch.Generator().manual_seed(3),
    )


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_that_of_a_loop() -> None:
    text, clean, noisy = randn(3, 5), randn(3, 5, seed=1), randn(2, 3, 5, seed=2)
    sizes = randn(2, 3, seed=4).abs() + 1
    total = 0.0
    for k in range(2):
        for i in range(3):
            first = sum((text[i, d] - noisy[k, i, d]) ** 2 for d in range(5)) ** 0.5
            second = sum((clean[i, d] - noisy[k, i, d]) ** 2 for d in range(5)) ** 0.5
            total += float((first + second) / (2 * sizes[k, i])) / 6
    found = roughness(text.float(), clean.float(), noisy.float(), sizes.float())
    assert float(found) == pytest.approx(total, rel=1e-5)
    # The control: a ratio of means is not the mean of ratios.
    apart = (text - noisy).norm(dim=-1) + (clean - noisy).norm(dim=-1)
    assert float(apart.mean() / (2 * sizes.mean())) != pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("k, left", [(0, [2]), (1, [2]), (2, [0, 2]), (9, [0, 2, 3])])
def test_the_tensors_with_the_largest_mean_gradient_stay(k: int, left: list[int]) -> None:
    parameters = [torch.zeros(shape, requires_grad=True) for shape in [(2,), (3,), (2, 2), (50,)]]
    for i, (parameter, size) in enumerate(zip(parameters, [0.5, 0, -2.0, 0.4], strict=True)):
        # The last has the largest sum and a small mean; the second has no gradient at all.
        parameter.grad = None if i == 1 else torch.full_like(parameter, size)
    keep_largest(parameters, k)
    assert [i for i, parameter in enumerate(parameters) if parameter.grad is not None] == left


@pytest.mark.parametrize(
    "forget, cells",
    [
        ({"classes": ("dog",)}, {(0, 0), (0, 1)}),
        ({"classes": ("dog",), "domains": ("sketch",)}, {(0, 1)}),
        ({"domains": ("sketch",)}, {(0, 1), (1, 1), (2, 1)}),
    ],
)
def test_pictures_and_prompts_are_of_what_is_to_be_forgotten(
    task: Task, made: Shots, monkeypatch: pytest.MonkeyPatch, forget: Any, cells: set[Any]
) -> None:
    given = replace(task, forget=Forget(**forget))
    untouched = lipschitz.synthesise
    numbers = {"steps": 1}  # enough to see which they are
    monkeypatch.setattr(
        lipschitz,
        "synthesise",
        lambda clip, *names, **options: untouched(
            clip, *names[:-1], replace(names[-1], **numbers), **options
        ),
    )
    found = pictures(given, 1)
    assert set(zip(found.labels.tolist(), found.domains.tolist(), strict=True)) == cells
    assert len(found) == len(cells)
    whole = given.forget.paradigm == "global"
    words = task.words
    for c, d in cells:
        said = [
            template.format(**{"class": CLASSES[c]}, **({} if whole else {"domain": DOMAINS[d]}))
            for template in (words.class_templates if whole else words.cell_templates)
        ]
        assert torch.equal(prompts(given)[c, d], task.clip.tokenizer(said))


@pytest.mark.usefixtures("ready")
def test_the_noise_grows_to_its_end(
    task: Task, made: Shots, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[Tensor] = []
    monkeypatch.setattr(
        lipschitz, "roughness", lambda t, c, n, s: sizes.append(s) or roughness(t, c, n, s)
    )
    stages = list(SHORT.stages(task))
    assert [stage.name for stage in stages] == [f"noise {noise:g}" for noise, _ in SCHEDULE]
    batch, root = batch_of(made), (3 * 64 * 64) ** 0.5
    for stage in stages:
        stage.loss(batch)
    for found, (noise, _) in zip(sizes, SCHEDULE, strict=True):
        # A normal vector's length, in units of its deviation, is the root of its dimension.
        assert torch.allclose(found / root, torch.tensor(noise), rtol=0.03)
    # With everything forgotten that is asked for, there is no second noise.
    assert len(list(replace(SHORT, enough=1.0).stages(task))) == 1


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("share, towers", [(0.1, "both"), (0.1, "text"), (1.0, "visual")])
def test_only_the_chosen_tensors_move(task: Task, made: Shots, share: float, towers: Any) -> None:
    method = replace(SHORT, share=share, towers=towers)
    stage: Stage = next(method.stages(task))
    module = stage.student.module
    keys: tuple[str, ...] = module.keys
    parameters = list(module.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    sum(stage.loss(batch_of(made)).values()).backward()
    reached = [parameter.grad is not None for parameter in parameters]
    assert stage.after_backward is not None
    stage.after_backward()
    stage.optimizer(parameters).step()
    moved = [
        key
        for key, old, new in zip(keys, before, parameters, strict=True)
        if not torch.equal(old, new)
    ]
    for visual in (True, False):
        own = [key for key in keys if key.startswith("visual.") == visual]
        expected = round(share * len(own)) if visual or towers != "visual" else 0
        some = [key for key in moved if key.startswith("visual.") == visual]
        assert len(some) == (expected if own else 0)
        assert not own or (towers in ("both", "visual" if visual else "text"))
    assert len(moved) < len(keys) or share == 1.0
    assert any(reached)


@pytest.mark.usefixtures("ready")
def test_clean_pictures_and_prompts_go_where_noise_leads(task: Task, made: Shots) -> None:
    stage = next(SHORT.stages(task))
    module, batch = stage.student.module, batch_of(made)
    sum(stage.loss(batch).values()).backward()
    # The oracle: the same loss written anew, the noisy embeddings taken as given numbers.
    noise = 0.1 * torch.randn(
        (SHORT.noises, *batch.images.shape), generator=torch.Generator().manual_seed(3)
    )
    noisy = [task.clip.encode_image(batch.images + one) for one in noise]
    module_again = next(SHORT.stages(task)).student
    clean = module_again.image(batch.images)
    again = dict(zip(module_again.module.keys, module_again.module.parameters(), strict=True))
    key = "visual.proj"
    apart = sum(
        (clean - far).norm(dim=-1) / one.flatten(1).norm(dim=-1) / 2
        for far, one in zip(noisy, noise, strict=True)
    )
    (expected,) = torch.autograd.grad(apart.mean() / SHORT.noises, again[key])
    found = dict(zip(module.keys, module.parameters(), strict=True))[key].grad
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()) + 1e-8)


@pytest.mark.usefixtures("ready")
def test_a_class_is_forgotten_and_the_original_stays(
    task: Task, made: Shots, real: tuple[Tensor, Tensor]
) -> None:
    before = {key: value.clone() for key, value in task.clip.model.state_dict().items()}
    first = right(task, task.clip, real)
    result = train(SHORT, task, quiet=True)
    after = right(task, result.clip, real)
    assert first[0] > 0.8 and after[0] < first[0] - 0.4
    assert after[1:].mean() > first[1:].mean() - 0.2
    state = task.clip.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in before.items())
    # The control: where nothing moves, nothing is forgotten.
    idle = train(replace(SHORT, lr=1e-12, enough=1.0), task, quiet=True)
    assert torch.equal(right(task, idle.clip, real), first)
    student = next(SHORT.stages(task)).student
    assert accuracy(student, task, made, 3) > SHORT.enough


@pytest.mark.usefixtures("ready")
def test_a_tower_that_does_not_train_stays(task: Task) -> None:
    result = train(replace(SHORT, towers="text", enough=1.0), task, quiet=True)
    old = dict(task.clip.model.named_parameters())
    moved = [key for key, value in values(result).items() if not torch.equal(value, old[key])]
    assert moved and not any(key.startswith("visual.") for key in moved)


@pytest.mark.usefixtures("ready")
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = replace(SHORT, epochs=2, enough=0.0, noises=1)
    monkeypatch.setattr(lipschitz, "SCHEDULE", SCHEDULE[:2])
    expected = values(train(method, task, quiet=True))
    calls = [0]

    def dies(*given: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 4:  # one step an epoch: in the second epoch of the second noise
            raise KeyboardInterrupt
        return roughness(*given)

    monkeypatch.setattr(lipschitz, "roughness", dies)
    with pytest.raises(KeyboardInterrupt):
        train(method, task, folder=tmp_path, quiet=True)
    found = values(train(method, task, folder=tmp_path, quiet=True))
    assert calls[0] == 5
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    other = values(train(replace(method, epochs=1), task, quiet=True))
    assert any(not torch.equal(value, other[key]) for key, value in expected.items())
