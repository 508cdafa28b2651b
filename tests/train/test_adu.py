"""ADU: its loss is the paper's, each part can be left out, and the model forgets a domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import from_bundled
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import save_adapter
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.train import loop
from nullspace_unlearn.train.adu import Adu
from nullspace_unlearn.train.loop import train
from nullspace_unlearn.train.method import Stage
from nullspace_unlearn.train.shots import from_tensors
from nullspace_unlearn.train.task import Minibatch, Task
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("dog", "car", "tree"), ("photo", "sketch")
FEW = Adu(epochs=2, batch_size=6, tokens=2, augmented=False)


def request(shots: int, validation: int, **forget: tuple[str, ...]) -> Task:
    clip = nsu.load("nsu-mini", device="cpu")
    assert clip.words is not None
    names = {domain: clip.words.domains[domain] for domain in DOMAINS}
    words = Words(CLASSES, names, class_templates=clip.words.class_templates)
    given = from_bundled(clip, CLASSES, DOMAINS, shots, validation, seed=5)
    return Task(clip, Forget(**forget), words, *given)


@pytest.fixture(scope="module")
def task() -> Task:
    """A class everywhere, so that domains play no part in what is forgotten; no validation."""
    return request(2, 0, classes=("dog",))


def first_stage(method: Adu, task: Task) -> Stage:
    torch.manual_seed(0)
    return next(method.stages(task))


def everything(task: Task) -> Minibatch:
    some = task.shots
    # Noise, or the model would be so sure of itself that a term rounds to zero.
    noise = torch.randn(len(some), 3, *task.clip.image_size)
    return Minibatch(
        images=some.read(torch.arange(len(some))) + noise,
        labels=some.labels,
        domains=some.domains,
        forgotten=task.forgotten(some),
        generator=torch.Generator(),
    )


def prompts_of(method: Adu, task: Task) -> Tensor:
    adapter = train(method, task, quiet=True).clip.adapter
    assert adapter is not None
    return torch.cat([value.flatten() for value in adapter.prompts.parameters()])


def test_loss_is_the_papers(task: Task) -> None:
    """Oracle: each term image by image, and the discrepancy pair by pair."""
    method = replace(FEW, memorise=0.5, forget=2.0)
    stage, batch = first_stage(method, task), everything(task)
    terms = {name: float(value.detach()) for name, value in stage.loss(batch).items()}
    with torch.no_grad():
        unit = F.normalize(stage.student.image(batch.images), dim=-1).double()
    scale, text = task.clip.logit_scale, task.prototypes.double()
    classifier: Any = stage.student.module.get_submodule("classifier")
    mem, gone, domain = [], [], []
    for u, label, d, forgotten in zip(
        unit, batch.labels, batch.domains, batch.forgotten, strict=True
    ):
        logits = (scale * text @ u).tolist()
        whole = math.log(sum(math.exp(x) for x in logits))
        if forgotten:
            gone.append(sum(whole - x for x in logits) / len(logits))
        else:
            mem.append(whole - logits[int(label)])
        with torch.no_grad():
            named = classifier(u.float() * scale**0.5).double().tolist()
        domain.append(math.log(sum(math.exp(x) for x in named)) - named[int(d)])

    def kernel(x: Tensor, y: Tensor) -> float:
        return sum(math.exp(-float((x - y).square().sum()) / (2 * s * s)) for s in (1, 2, 4, 8)) / 4

    def average(a: Tensor, b: Tensor) -> float:
        return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))

    one, two = (unit[batch.domains == d] for d in (0, 1))
    mmd2 = average(one, one) + average(two, two) - 2 * average(one, two)
    expected = {
        "mem": 0.5 * sum(mem) / len(mem),
        "for": 2.0 * sum(gone) / len(gone),
        "domain": 30.0 * sum(domain) / len(domain),
        "mmd": -10.0 * mmd2,
    }
    assert terms == pytest.approx(expected, rel=1e-4)
    assert all(abs(value) > 1e-3 for value in expected.values())  # no term is checked at zero


def test_gradients_reach_what_trains_and_nothing_else(task: Task) -> None:
    stage = first_stage(FEW, task)
    torch.stack(list(stage.loss(everything(task)).values())).sum().backward()
    reached = {
        name.split(".")[1] if name.startswith("prompts") else name.split(".")[0]
        for name, value in stage.student.module.named_parameters()
        if value.grad is not None and value.grad.any()
    }
    assert reached == {"values", "generator", "classifier"}
    assert all(value.grad is None for value in task.clip.model.parameters())


@pytest.mark.parametrize(
    ("numbers", "terms", "sees_domains"),
    [
        ({}, {"mem", "for", "domain", "mmd"}, True),
        ({"gamma": 0.0}, {"mem", "for", "mmd"}, True),
        ({"lam": 0.0}, {"mem", "for", "domain"}, True),
        ({"gamma": 0.0, "lam": 0.0}, {"mem", "for"}, False),
    ],
    ids=["both", "no classifier", "no MMD", "neither"],
)
def test_a_part_left_out_is_not_felt(
    task: Task, numbers: dict[str, float], terms: set[str], sees_domains: bool
) -> None:
    """Without both parts the domains can be any, and the result is the same to the bit."""
    method = replace(FEW, **numbers)
    assert set(first_stage(method, task).loss(everything(task))) == terms
    some = task.shots
    images = some.read(torch.arange(len(some)))
    other = replace(task, shots=from_tensors(images, some.labels, some.domains.flip(0)))
    # Swapping the two domains' names is felt by no part: every second image changes sides.
    other.shots.domains[::2] = some.domains[::2]
    assert torch.equal(prompts_of(method, task), prompts_of(method, other)) != sees_domains


def test_without_the_generator_prompts_are_plain(task: Task) -> None:
    plain = train(replace(FEW, generator=False), task, quiet=True).clip.adapter
    made = train(FEW, task, quiet=True).clip.adapter
    assert plain is not None and plain.prompts.generator is None
    assert made is not None and made.prompts.generator is not None


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prompts_of(FEW, task)
    epoch: Callable[..., Any] = loop._Loop._epoch

    def once(self: Any, *arguments: Any) -> Any:
        if self.state.epoch:
            raise KeyboardInterrupt
        return epoch(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_epoch", once)
        with pytest.raises(KeyboardInterrupt):
            train(FEW, task, folder=tmp_path, quiet=True)
    resumed = train(FEW, task, folder=tmp_path, quiet=True).clip.adapter
    assert resumed is not None
    state = torch.cat([value.flatten() for value in resumed.prompts.parameters()])
    assert torch.equal(state, whole)
    assert not torch.equal(prompts_of(replace(FEW, epochs=1), task), whole)  # the control


@pytest.mark.slow
def test_it_forgets_a_domain_and_the_control_does_not(tmp_path: Path) -> None:
    task = request(4, 3, domains=("sketch",))
    method = Adu(epochs=12, lr=0.02, batch_size=8, gamma=5.0, augmented=False)
    learned = train(method, task, quiet=True)
    left = learned.log[-1]["validation"]
    control = train(replace(method, forget=0.0), task, quiet=True).log[-1]["validation"]
    assert left["forgotten"] < 0.75 < 0.8 < min(left["kept"], control["forgotten"])
    folder = save_adapter(learned.clip, tmp_path / "out")
    images = task.validation.read(torch.arange(4))
    again = nsu.load(folder, device="cpu")
    assert torch.equal(again.encode_image(images), learned.clip.encode_image(images))
    assert again.adapter is not None and again.adapter.provenance["method"] == "adu"


@pytest.mark.parametrize("domains", [(), ("sketch",)], ids=["global", "cell"])
def test_other_requests_train_too(task: Task, domains: tuple[str, ...]) -> None:
    asked = replace(task, forget=Forget(classes=("dog",), domains=domains))
    log = train(replace(FEW, epochs=1), asked, quiet=True).log
    assert log[0]["loss"]["for"] > 0 and log[0]["loss"]["mem"] > 0
