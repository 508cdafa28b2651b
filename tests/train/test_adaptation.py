"""Space adaptation: its three norms, what it sends where, and that it needs no image."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from small import from_bundled
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip.network import encode
from nullspace_unlearn.clip.projection import find
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.train import adaptation
from nullspace_unlearn.train.adaptation import (
    SpaceAdaptation,
    destination,
    distances,
    hidden,
    neutral,
    prompts,
)
from nullspace_unlearn.train.loop import Trained, train
from nullspace_unlearn.train.task import Task
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("dog", "car", "bird", "fish", "tree"), ("photo", "sketch")
KEY = "text_projection"
SHORT = SpaceAdaptation(epochs=2, steps=100, target="opposite")


def request(**forget: Any) -> Task:
    clip = nsu.load("nsu-mini")
    assert clip.words is not None
    names = {domain: clip.words.domains[domain] for domain in DOMAINS}
    words = Words(CLASSES, names, class_templates=clip.words.class_templates[:3])
    shots, _ = from_bundled(clip, CLASSES, DOMAINS, 1, seed=5)
    return Task(clip, Forget(**forget), words, shots, shots.subset(torch.arange(0)))


@pytest.fixture(scope="module")
def task() -> Task:
    return request(classes=("dog",))


@pytest.fixture(scope="module")
def trained(task: Task) -> Trained:
    return train(SHORT, task, quiet=True)


@pytest.fixture(scope="module")
def pictures(task: Task) -> tuple[Tensor, Tensor]:
    """Unit embeddings of pictures that nothing was trained on, and their classes."""
    _, some = from_bundled(task.clip, CLASSES, DOMAINS, 1, 4, seed=5)
    return unit(task.clip.encode_image(some.read(torch.arange(len(some))))), some.labels


def right(task: Task, clip: nsu.Clip, pictures: tuple[Tensor, Tensor]) -> Tensor:
    """Accuracy in each class; the image tower is that of the untouched model."""
    images, labels = pictures
    named = (images @ replace(task, clip=clip).prototypes.mT).argmax(-1)
    return torch.stack([(named[labels == i] == i).double().mean() for i in range(len(CLASSES))])


def change(task: Task, result: Trained) -> Tensor:
    """What training added to the text projection, float64."""
    after, before = (clip.model.get_parameter(KEY) for clip in (result.clip, task.clip))
    return (after.double() - before.double()).detach()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_norms_are_those_of_a_loop() -> None:
    gone, kept, before, after, target = (
        randn(*shape, seed=i) for i, shape in enumerate([(2, 5), (4, 5), (5, 3), (5, 3), (2, 3)])
    )
    # The oracle: sums of squares, one number at a time.
    first = sum(
        (target[i, d] - sum(gone[i, k] * after[k, d] for k in range(5))) ** 2
        for i in range(2)
        for d in range(3)
    )
    second = sum(
        sum(kept[i, k] * (after[k, d] - before[k, d]) for k in range(5)) ** 2
        for i in range(4)
        for d in range(3)
    )
    third = sum((after[k, d] - before[k, d]) ** 2 for k in range(5) for d in range(3))
    found = distances(*(x.float() for x in (gone, kept, before, after, target)))
    expected = torch.stack([torch.as_tensor(x) for x in (first, second, third)]).sqrt()
    assert torch.allclose(torch.stack(found).double(), expected, rtol=1e-5)
    # The control: squares are something else.
    assert not torch.allclose(torch.stack(found).double() ** 2, expected, rtol=1e-2)


def test_a_norm_that_is_zero_pulls_nowhere() -> None:
    gone, kept, before, target = randn(2, 5), randn(4, 5), randn(5, 3), randn(2, 3)
    after = before.clone().requires_grad_()
    norms = distances(gone, kept, before, after, target)
    (norms[1] + norms[2]).backward()
    assert after.grad is not None and not after.grad.any()
    distances(gone, kept, before, after, target)[0].backward()
    assert after.grad.isfinite().all() and after.grad.any()


def test_hidden_features_lead_to_the_embeddings(task: Task) -> None:
    texts = prompts(task, CLASSES)
    found = task.clip.projection("text").apply(hidden(task.clip, texts))
    assert torch.allclose(found, task.clip.encode_text(texts), atol=1e-4)
    assert not torch.allclose(found, task.clip.encode_text(texts[::-1]), atol=1e-2)


@pytest.mark.parametrize("bias", [False, True])
def test_they_do_where_the_projection_is_a_layer(task: Task, bias: bool) -> None:
    torch.manual_seed(1)
    size: dict[str, Any] = {"width": 16, "layers": 1}
    model = open_clip.model.CustomTextCLIP(
        8,
        {**size, "image_size": 16, "patch_size": 8, "head_width": 8},
        {**size, "heads": 2, "context_length": 16, "proj_type": "linear", "proj_bias": bias},
    ).eval()
    place = find(model, "text")
    assert (place.bias_key is not None) == bias
    if place.bias_key is not None:
        torch.nn.init.normal_(model.get_parameter(place.bias_key))
    short = open_clip.SimpleTokenizer(context_length=16)
    tiny = replace(task.clip, model=model.requires_grad_(False), tokenizer=short)
    texts = prompts(task, CLASSES)
    with torch.no_grad():
        expected = encode(model, short(texts), "text")
    assert torch.allclose(tiny.projection("text").apply(hidden(tiny, texts)), expected, atol=1e-5)


def test_the_destination_is_the_empty_prompt_or_the_opposite(task: Task) -> None:
    empty = unit(task.clip.encode_text([""]))[0]
    assert torch.allclose(neutral(task), empty, atol=1e-6)
    embeddings = randn(3, task.clip.dim).float()
    found = destination(task, embeddings, "empty")
    assert torch.allclose(found, empty.expand(3, -1), atol=1e-6)
    assert torch.allclose(destination(task, embeddings, "opposite"), -unit(embeddings), atol=1e-6)


def test_the_empty_prompt_moves_off_a_forgotten_class(task: Task) -> None:
    empty = unit(task.clip.encode_text([""]))[0]
    nearest = int((task.prototypes @ empty).argmax())
    other = replace(task, forget=Forget(classes=(CLASSES[nearest],)))
    found = neutral(other)
    assert torch.isclose(found.norm(), torch.tensor(1.0))
    assert int((task.prototypes @ found).argmax()) != nearest
    assert torch.equal(found, neutral(other))
    assert not torch.equal(found, neutral(replace(other, seed=1)))


def test_a_class_is_forgotten_and_the_others_stay(
    task: Task, trained: Trained, pictures: tuple[Tensor, Tensor]
) -> None:
    before, after = right(task, task.clip, pictures), right(task, trained.clip, pictures)
    assert before[0] > 0.8 and after[0] < 0.2
    assert after[1:].mean() > before[1:].mean() - 0.1
    # The control: nothing pulls, so nothing moves.
    idle = train(replace(SHORT, forget=0.0), task, quiet=True)
    assert torch.equal(right(task, idle.clip, pictures), before)
    assert not change(task, idle).any()


def test_prompts_go_where_they_are_sent(task: Task) -> None:
    result = train(replace(SHORT, target="empty", epochs=3), task, quiet=True)
    gone, kept = (prompts(task, names) for names in (("dog",), CLASSES[1:]))
    aim = neutral(task)
    away = lambda clip, texts: float((clip.encode_text(texts) - aim).norm())  # noqa: E731
    assert away(result.clip, gone) < 0.2 * away(task.clip, gone)
    moved = result.clip.encode_text(kept) - task.clip.encode_text(kept)
    assert moved.norm() < 0.3 * task.clip.encode_text(kept).norm()


def test_only_the_text_projection_changes_and_by_a_low_rank(task: Task, trained: Trained) -> None:
    before, after = (dict(clip.model.named_parameters()) for clip in (task.clip, trained.clip))
    assert [key for key in before if not torch.equal(before[key], after[key])] == [KEY]
    values = torch.linalg.svdvals(change(task, trained))
    assert values[0] > 1e-2 and values[SHORT.rank :].max() < 1e-5 * values[0]
    assert values[SHORT.rank - 1] > 1e-5 * values[0]


def test_the_size_of_the_addition_is_held_down(task: Task, trained: Trained) -> None:
    free = train(replace(SHORT, weight=0.0), task, quiet=True)
    assert change(task, trained).norm() < change(task, free).norm()


def test_the_original_stays_and_images_change_nothing(task: Task) -> None:
    before = {key: value.clone() for key, value in task.clip.model.state_dict().items()}
    small, shots = replace(SHORT, steps=3), task.shots
    # Only how many images there are is ever asked, never what is in them.
    seen: list[int] = []
    read = lambda index: seen.append(len(index)) or shots.read(index)  # type: ignore[func-returns-value]  # noqa: E731
    train(small, replace(task, shots=replace(shots, read=read)), quiet=True)
    assert seen == [0] * 6
    state = task.clip.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in before.items())


def test_aliases_go_with_their_class_and_kept_names_stay(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    real = adaptation.hidden
    monkeypatch.setattr(adaptation, "hidden", lambda clip, t: asked.append(t) or real(clip, t))
    forget = Forget(classes=("dog",), aliases={"dog": ("puppy",)}, keep=("wolf",))
    next(SHORT.stages(replace(task, forget=forget)))
    assert asked[0] == prompts(task, ("dog", "puppy"))
    assert asked[1] == prompts(task, (*CLASSES[1:], "wolf"))


def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = replace(SHORT, epochs=3, steps=20)
    expected = change(task, train(method, task, quiet=True))
    real, calls = adaptation.distances, [0]

    def dies(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        calls[0] += 1
        if calls[0] == 50:  # in the third epoch
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(adaptation, "distances", dies)
    with pytest.raises(KeyboardInterrupt):
        train(method, task, folder=tmp_path, quiet=True)
    found = train(method, task, folder=tmp_path, quiet=True)
    assert calls[0] == 50 + 20  # the third epoch alone
    assert torch.equal(change(task, found), expected)
    assert not torch.equal(change(task, train(replace(method, epochs=2), task)), expected)


@pytest.mark.parametrize(
    "forget, said",
    [
        ({"classes": ("dog",), "domains": ("sketch",)}, "does not take .* 'cell'"),
        ({"domains": ("sketch",)}, "does not take .* 'domain'"),
        ({"classes": CLASSES}, "every class is to be forgotten"),
    ],
)
def test_what_it_cannot_do_is_refused(
    task: Task,
    forget: dict[str, Any],
    said: str,
    unchecked: Callable[[], AbstractContextManager[None]],
) -> None:
    with unchecked(), pytest.raises(ValueError, match=said) as caught:
        train(SHORT, replace(task, forget=Forget(**forget)), quiet=True)
    assert "\n" not in str(caught.value)
