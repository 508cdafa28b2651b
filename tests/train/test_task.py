"""What a method is given fits together, and a student is the model with what it learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train.shots import Shots, from_tensors
from nullspace_unlearn.train.task import Task, with_weights
from nullspace_unlearn.train.weights import Lora, Weights
from nullspace_unlearn.words import Words

WORDS = Words(
    classes=("car", "dog", "tree"),
    domains={"photo": "photo", "sketch": "pencil sketch"},
    class_templates=("a photo of a {class}.", "a picture of the {class}."),
)
FORGET = Forget(classes=["car"], domains=["sketch"])


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


def shots(labels: list[int], domains: list[int], size: int = 64) -> Shots:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(len(labels), 3, size, size, generator=random)
    index = [torch.tensor(some, dtype=torch.int64) for some in (labels, domains)]
    return from_tensors(images, *index)


@pytest.fixture(scope="module")
def task(clip: Clip) -> Task:
    some = shots([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])
    return Task(clip, FORGET, WORDS, some, shots([], []))


def test_the_mask_says_which_images_are_forgotten(task: Task) -> None:
    assert task.mask.tolist() == [[False, True], [False, False], [False, False]]
    assert task.forgotten(task.shots).tolist() == [False, True, False, False, False, False]
    whole = replace(task, forget=Forget(domains=["sketch"]))
    assert whole.forgotten(task.shots).tolist() == [False, True] * 3  # control
    # A request names domains by key, not by the word prompts use.
    with pytest.raises(ValueError, match="unknown domain 'pencil sketch'; known: photo, sketch"):
        replace(task, forget=Forget(domains=["pencil sketch"]))


@pytest.mark.parametrize(
    "labels, domains, message",
    [
        ([0, 3], [1, 0], "images must be of class 0 to 2, got 0 to 3"),
        ([0, -1], [1, 0], "images must be of class 0 to 2, got -1 to 0"),
        ([0, 1], [1, 2], "images must be of domain 0 to 1, got 1 to 2"),
        ([0, 1], [1, -2], "images must be of domain 0 to 1, got -2 to 1"),
    ],
)
@pytest.mark.parametrize("where", ["training", "validation"])
def test_images_of_no_cell_are_refused(
    task: Task, labels: list[int], domains: list[int], message: str, where: str
) -> None:
    name = "shots" if where == "training" else "validation"
    with pytest.raises(ValueError, match=f"{where} {message}"):
        replace(task, **{name: shots(labels, domains)})
    replace(task, **{name: shots([0, 2], [1, 0])})  # control


def test_what_cannot_be_learned_or_judged_is_refused(task: Task) -> None:
    for some in (shots([], []), shots([0, 1], [0, 1])):
        with pytest.raises(ValueError, match="no training image is of a cell to be forgotten"):
            replace(task, shots=some)
    with pytest.raises(ValueError, match="all 2 are to be forgotten"):
        replace(task, validation=shots([0, 0], [1, 1]))
    with pytest.raises(ValueError, match="all 2 are to stay"):
        replace(task, validation=shots([0, 1], [0, 1]))
    replace(task, validation=shots([0, 1], [1, 1]))  # control
    half = nsu.load("nsu-mini", device="cpu", precision="bf16")
    with pytest.raises(ValueError, match="a model in float32, and this one holds torch.bfloat16"):
        replace(task, clip=half)


def test_the_classifier_is_the_untouched_models(task: Task) -> None:
    """Oracle: the model's own text tower, prompt by prompt."""
    rows = []
    for name in WORDS.classes:
        prompts = [t.format(**{"class": name}) for t in WORDS.class_templates]
        each = torch.stack([F.normalize(task.clip.encode_text([p])[0], dim=0) for p in prompts])
        rows.append(F.normalize(each.mean(0), dim=0))
    expected = torch.stack(rows)
    assert torch.allclose(task.prototypes, expected, atol=1e-6)
    assert task.tokens.shape == (6, task.clip.tokenizer(["a"]).shape[1])
    same = {"text_projection": task.clip.model.get_parameter("text_projection")}
    assert torch.allclose(task.text_with(same), expected, atol=1e-6)
    assert task.text_with({"visual.proj": torch.zeros(128, 64)}) is task.prototypes
    assert task.text_with({}) is task.prototypes
    other = {"text_projection": same["text_projection"].flip(0)}
    assert not torch.allclose(task.text_with(other), expected, atol=1e-2)  # control


KEYS = ["visual.proj", "text_projection"]


def learner(clip: Clip, kind: str) -> Weights | Lora:
    if kind == "weights":
        return Weights(clip.model, KEYS)
    return Lora(clip.model, KEYS, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["weights", "lora"])
def test_a_student_is_its_result(task: Task, kind: str) -> None:
    """Oracle: the model that comes of it, encoding images and prompts by itself."""
    module = learner(task.clip, kind)
    student = with_weights(task, module)
    images = task.shots.read(torch.arange(6))

    def agree(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, atol=1e-5)

    untouched = task.clip.encode_image(images)
    assert agree(student.image(images), untouched) and agree(student.text(), task.prototypes)
    with torch.no_grad():
        for number, value in enumerate(module.parameters()):
            random = torch.Generator().manual_seed(number)
            value += torch.randn(value.shape, generator=random) / 5
    made = student.result({"method": "test"})
    assert agree(student.image(images), made.encode_image(images))
    assert not agree(student.image(images), untouched)  # control
    classifier = replace(task, clip=made).prototypes
    assert agree(student.text(), classifier) and not agree(classifier, task.prototypes)
    unit = F.normalize(made.encode_image(images), dim=-1)
    expected = float(task.clip.model.logit_scale.exp()) * unit @ classifier.T
    assert torch.allclose(student.logits(task, images), expected, atol=1e-3)
    assert {c.key: c.side for c in made.changes} == {
        "visual.proj": "visual",
        "text_projection": "text",
    }
    # Training on changes neither the result nor the model it came from.
    before = made.encode_image(images)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1)
    assert torch.equal(made.encode_image(images), before)
    assert torch.equal(task.clip.encode_image(images), untouched)
    assert not agree(student.image(images), before)  # control


@pytest.mark.parametrize("kind", ["weights", "lora"])
def test_gradients_are_those_of_finite_differences(task: Task, kind: str) -> None:
    module = learner(task.clip, kind)
    student = with_weights(task, module)
    images = task.shots.read(torch.arange(2))

    def loss() -> Tensor:
        return F.cross_entropy(student.logits(task, images) / 20, torch.tensor([0, 2]))

    loss().backward()
    parameters = [p for p in module.parameters() if p.grad is not None and p.grad.norm() > 0]
    assert parameters
    for value in parameters:
        assert value.grad is not None
        direction = value.grad / value.grad.norm()
        sides = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                value.add_(direction, alpha=step)
                sides.append(float(loss()))
                value.sub_(direction, alpha=step)
        assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(float(value.grad.norm()), rel=0.02)
    assert all(p.grad is None for p in task.clip.model.parameters())
