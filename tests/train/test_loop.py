"""The loop: what a step sees, when the learning rate falls, and that nothing shows an interruption.

The method here is a toy: an embedding linear in the pixels of 2 x 2 images, whose weights end up as
one parameter of the model, so that two results are compared bit for bit.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from small import from_bundled
from torch import Tensor, nn

import nullspace_unlearn as nsu
from nullspace_unlearn import files
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.figures import FIGURES, grid_figures
from nullspace_unlearn.evaluate.measure import Model
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.fingerprint import OtherRun
from nullspace_unlearn.forget import Forget, Paradigm
from nullspace_unlearn.train import checkpoint, loop
from nullspace_unlearn.train.loop import Settings, Trained, train
from nullspace_unlearn.train.method import Stage, Stages
from nullspace_unlearn.train.plain import Finetune
from nullspace_unlearn.train.shots import Shots, from_tensors
from nullspace_unlearn.train.task import Minibatch, Student, Task, with_weights
from nullspace_unlearn.train.weights import Weights
from nullspace_unlearn.words import Words

WORDS = Words(
    classes=("car", "dog", "tree"),
    domains={"photo": "photo", "sketch": "sketch"},
    class_templates=("a photo of a {class}.",),
)
FORGET = Forget(classes=["car"], domains=["sketch"])
KEY = "visual.ln_post.bias"


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(2, 64, generator=random) / 8)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, 1:3] @ self.weight


@dataclass(frozen=True)
class Toy:
    """One stage or two; what tests hook into it is no number of it, so no part of a run's name."""

    epochs: int = 3
    lr: float = 0.02
    batch_size: int = 8
    optimizer: str = "sgd"
    stages_: int = 1
    options: str = ""
    name: ClassVar[str] = "toy"
    paper: ClassVar[str] = "none"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global", "cell")
    sees_images: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        hooks: Mapping[str, Any] = getattr(self, "hooks", {})
        module = Linear()
        student = Student(
            module=module,
            image=module,
            text=lambda: task.prototypes,
            result=lambda said: task.clip.with_parameters({KEY: module.weight.flatten()}, said),
        )

        def loss(batch: Minibatch) -> Mapping[str, Tensor]:
            torch.rand(3)  # that a loss draws must not be felt by the next stage
            for see in hooks.get("see", ()):
                see(batch)
            noise = torch.randn(len(batch.labels), 3, generator=batch.generator)
            logits = student.logits(task, batch.images) / 20 + noise / 10
            entropy = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
            gone = batch.forgotten.float()
            terms = {"mem": (entropy * (1 - gone)).mean(), "for": -(entropy * gone).mean() / 9}
            return hooks.get("spoil", lambda terms: terms)(terms)

        def optimizer(trained: Any) -> torch.optim.Optimizer:
            made: torch.optim.Optimizer = {
                "sgd": lambda: torch.optim.SGD(trained, lr=self.lr, momentum=0.9),
                "adam": lambda: torch.optim.Adam(trained, lr=self.lr),
            }[self.optimizer]()
            hooks.get("optimizers", []).append(made)
            return made

        for number in range(self.stages_):
            if number:
                with torch.no_grad():
                    module.weight += torch.randn(2, 64) / 50
            yield Stage(
                name=f"stage {number}",
                student=student,
                loss=loss,
                optimizer=optimizer,
                epochs=self.epochs,
                batch_size=self.batch_size,
                after_step=hooks.get("after_step"),
                **hooks.get("stage", {}),
            )
        return student


def toy(hooks: Mapping[str, Any] | None = None, **numbers: Any) -> Toy:
    method = Toy(**numbers)
    object.__setattr__(method, "hooks", hooks or {})
    return method


def shots(each: int, seed: int = 0) -> Shots:
    """Random images of every cell; the first pixel of each is its number."""
    cells = [(c, d) for c in range(3) for d in range(2) for _ in range(each)]
    index = torch.tensor(cells, dtype=torch.int64).reshape(-1, 2)
    random = torch.Generator().manual_seed(seed)
    kinds = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(77))
    images = kinds[index[:, 0]] + 0.7 * torch.randn(len(index), 3, 2, 2, generator=random)
    images[:, 0, 0, 0] = torch.arange(len(index)).float()
    return from_tensors(images, index[:, 0], index[:, 1])


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def task(clip: Clip) -> Task:
    task = Task(clip, FORGET, WORDS, shots(5), shots(20, seed=1))
    # Images this small are none to the model: say that it names them all right.
    task.__dict__["judged_by"] = Model(task.prototypes[task.validation.labels], task.prototypes)
    return task


@pytest.fixture(scope="module")
def blind(task: Task) -> Task:
    """The same without validation images."""
    return Task(task.clip, FORGET, WORDS, task.shots, shots(0))


def weight(trained: Trained) -> Tensor:
    return trained.clip.model.get_parameter(KEY).detach()


def same(one: Trained, other: Trained) -> bool:
    """Whether two runs agree to the last bit in all but the time they took."""

    def log(trained: Trained) -> str:
        return json.dumps([{**entry, "seconds": 0} for entry in trained.log])

    return torch.equal(weight(one), weight(other)) and log(one) == log(other)


def seen_by(method_task: Task, stage: Mapping[str, Any], **numbers: Any) -> list[list[int]]:
    """The numbers of the images of each step."""
    steps: list[list[int]] = []

    def see(batch: Minibatch) -> None:
        chosen = batch.images[:, 0, 0, 0].long()
        assert torch.equal(batch.labels, method_task.shots.labels[chosen])
        assert torch.equal(batch.domains, method_task.shots.domains[chosen])
        assert torch.equal(batch.forgotten, (batch.labels == 0) & (batch.domains == 1))
        steps.append(chosen.tolist())

    train(toy({"see": [see], "stage": stage}, **numbers), method_task, quiet=True)
    return steps


# What a step sees.


@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
def test_a_natural_epoch_sees_every_image_once(blind: Task, batch_size: int) -> None:
    steps = seen_by(blind, {}, epochs=2, batch_size=batch_size)
    each = math.ceil(30 / batch_size)
    assert len(steps) == 2 * each
    for epoch in (steps[:each], steps[each:]):
        assert sorted(sum(epoch, [])) == list(range(30))
        assert all(len(step) == batch_size for step in epoch[:-1])
    assert sum(steps[:each], []) != sum(steps[each:], []) != sorted(sum(steps[each:], []))


@pytest.mark.parametrize("batch_size", [2, 8, 9, 10, 24])
def test_balanced_batches_are_half_and_half(blind: Task, batch_size: int) -> None:
    steps = seen_by(blind, {"balanced": True}, epochs=1, batch_size=batch_size)
    half = batch_size // 2
    gone = set(range(5, 10))  # the images of the second cell
    assert len(steps) == math.ceil(25 / half)
    for step in steps:
        ours = [i for i in step if i in gone]
        assert len(ours) == min(half, 5)
        assert len(step) - len(ours) == min(half, 25)
    kept = Counter(i for step in steps for i in step if i not in gone)
    assert len(kept) == 25 and max(kept.values()) <= 2
    assert sum(kept.values()) - 25 < half  # none comes again before all have been seen
    again = Counter(i for step in steps for i in step if i in gone)
    assert len(again) == min(5, half * len(steps)) and max(again.values()) - min(again.values()) < 2
    # Control: a natural epoch is not balanced.
    natural = seen_by(blind, {}, epochs=1, batch_size=batch_size)
    assert any(len(gone & set(step)) != min(half, 5) for step in natural)


def test_the_order_depends_on_seed_stage_and_epoch_alone(task: Task, blind: Task) -> None:
    one = seen_by(task, {}, stages_=2)
    other = seen_by(blind, {"cosine": False, "scored": False}, stages_=2, lr=0.5, optimizer="adam")
    assert one == other
    each = len(one) // 6
    epochs = [sum(one[i * each : (i + 1) * each], []) for i in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert seen_by(replace(blind, seed=1), {}, stages_=2) != one


def test_augmented_images_differ_and_come_again(blind: Task) -> None:
    def images(seed: int, augmented: bool) -> list[Tensor]:
        held: list[Tensor] = []
        hooks = {"see": [lambda b: held.append(b.images)], "stage": {"augmented": augmented}}
        train(toy(hooks, epochs=2), replace(blind, seed=seed), quiet=True)
        return held

    plain, one, again = images(0, False), images(0, True), images(0, True)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, plain, strict=True))


def test_a_stage_may_look_at_other_images_or_none(blind: Task) -> None:
    chosen = torch.tensor([3, 20, 4])
    steps = seen_by(replace(blind), {"shots": blind.shots.subset(chosen)}, epochs=1)
    assert sorted(sum(steps, [])) == [3, 4, 20]
    nothing = blind.shots.subset(torch.arange(0))
    with pytest.raises(ValueError, match="stage 'stage 0' has no images to train on"):
        seen_by(blind, {"shots": nothing})
    everything = Task(
        blind.clip, Forget(classes=WORDS.classes), WORDS, blind.shots, blind.validation
    )
    with pytest.raises(ValueError, match="stage 'finetune' has no images"):
        train(Finetune(), everything, quiet=True)


# The learning rate and the step itself.


@pytest.mark.parametrize("cosine", [True, False])
def test_the_learning_rate_falls_along_a_cosine(blind: Task, cosine: bool) -> None:
    optimizers: list[torch.optim.Optimizer] = []
    rates: list[float] = []
    hooks = {
        "optimizers": optimizers,
        "after_step": lambda: rates.append(optimizers[-1].param_groups[0]["lr"]),
        "stage": {"cosine": cosine},
    }
    trained = train(toy(hooks, epochs=5, lr=0.3, batch_size=3), blind, quiet=True)
    assert len(rates) == 50 and rates[0] == 0.3
    assert [entry["lr"] for entry in trained.log] == rates[9::10]
    if not cosine:
        assert set(rates) == {0.3}
        return
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(0.3 * math.cos(math.pi * step / 100) ** 2)
    assert rates[-1] < 0.3 / 500


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_loop_does_what_a_plain_loop_does(blind: Task, name: str) -> None:
    """Oracle: the batches it saw, gone over again by hand."""
    batches: list[Minibatch] = []
    hooks = {"see": [lambda b: batches.append(replace(b, generator=clone(b.generator)))]}
    trained = train(toy(hooks, optimizer=name), blind, quiet=True)
    module = Linear()
    velocity, square = torch.zeros(2, 64), torch.zeros(2, 64)
    sums: dict[str, float] = {}
    for t, batch in enumerate(batches):
        rate = 0.02 * (1 + math.cos(math.pi * t / len(batches))) / 2
        noise = torch.randn(len(batch.labels), 3, generator=batch.generator)
        unit = module(batch.images) / module(batch.images).norm(dim=1, keepdim=True)
        logits = blind.clip.logit_scale * unit @ blind.prototypes.T / 20 + noise / 10
        picked = logits.exp()[torch.arange(len(noise)), batch.labels] / logits.exp().sum(1)
        each = torch.where(batch.forgotten, picked.log() / 9, -picked.log())
        (gradient,) = torch.autograd.grad(each.mean(), module.weight)
        if name == "sgd":
            velocity = 0.9 * velocity + gradient
            step = velocity
        else:
            velocity = 0.9 * velocity + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            mean, second = velocity / (1 - 0.9 ** (t + 1)), square / (1 - 0.999 ** (t + 1))
            step = mean / (second.sqrt() + 1e-8)
        with torch.no_grad():
            module.weight -= rate * step
        if t >= 8:  # the last of three epochs of four steps
            kept = torch.where(batch.forgotten, 0, each).mean()
            sums["mem"] = sums.get("mem", 0.0) + float(kept.detach()) / 4
    assert len(batches) == 12
    assert torch.allclose(weight(trained), module.weight.flatten(), atol=1e-5)
    assert not torch.allclose(weight(trained), Linear().weight.flatten(), atol=1e-3)
    assert trained.log[-1]["loss"]["mem"] == pytest.approx(sums["mem"], rel=1e-4)


def clone(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


def test_bf16_is_near_and_not_the_same(blind: Task) -> None:
    full, half = (train(toy(), blind, Settings(precision=p), quiet=True) for p in ("fp32", "bf16"))
    assert 0 < (weight(full) - weight(half)).abs().max() < 0.05
    assert weight(half).dtype == torch.float32


def test_a_loss_is_computed_in_float32(blind: Task) -> None:
    """The oracle is the forward pass under `torch.autocast`, outside of any training."""
    seen: list[tuple[Tensor, Tensor, bool]] = []

    @dataclass(frozen=True)
    class Seeing(Toy):
        def stages(self, task: Task) -> Stages:
            module = Linear()
            student = with_linear(task, module)

            def loss(batch: Minibatch) -> Mapping[str, Tensor]:
                with torch.autocast("cpu", torch.bfloat16):
                    expected = module(batch.images).detach()
                logits = student.logits(task, batch.images)
                seen.append((expected, logits.detach(), torch.is_autocast_enabled("cpu")))
                found = student.image(batch.images).detach()
                assert found.dtype == logits.dtype == torch.float32 == student.text().dtype
                same = torch.equal(found, expected.float())
                assert same and expected.dtype == torch.bfloat16
                assert not torch.equal(found, module(batch.images).detach())  # control
                return {"mem": nn.functional.cross_entropy(logits, batch.labels)}

            sgd = lambda some: torch.optim.SGD(some, lr=self.lr)  # noqa: E731
            yield Stage("see", student, loss, sgd, epochs=1, batch_size=8)
            return student

    train(Seeing(), blind, Settings(precision="bf16"), quiet=True)
    assert len(seen) == 4 and not any(enabled for *_, enabled in seen)
    for expected, logits, _ in seen:
        rows = nn.functional.normalize(expected.float(), dim=-1)
        torch.testing.assert_close(logits, blind.clip.logit_scale * rows @ blind.prototypes.mT)


def with_linear(task: Task, module: Linear) -> Student:
    return Student(
        module=module,
        image=module,
        text=lambda: task.prototypes,
        result=lambda said: task.clip.with_parameters({KEY: module.weight.flatten()}, said),
    )


def test_seconds_are_wall_time_of_the_whole(
    blind: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is a clock that the work itself moves on: between stages, too, and over runs."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    kill = [True]

    @dataclass(frozen=True)
    class Slow(Toy):
        def stages(self, task: Task) -> Stages:
            now[0] += 100  # before the first stage
            student = yield from Toy.stages(self, task)
            now[0] += 10  # after the last
            return student

    def tick() -> None:
        now[0] += 1
        if kill[0] and now[0] == 106:  # in the second epoch, two steps behind what was kept
            raise KeyboardInterrupt

    def slow() -> Slow:
        method = Slow(epochs=2)
        object.__setattr__(method, "hooks", {"after_step": tick})
        return method

    with pytest.raises(KeyboardInterrupt):
        train(slow(), blind, folder=tmp_path, quiet=True)
    kill[0] = False
    resumed = train(slow(), blind, folder=tmp_path, quiet=True)
    assert resumed.seconds == 104 + 100 + 4 + 10
    assert train(slow(), blind, quiet=True).seconds == 100 + 8 + 10
    assert sum(entry["seconds"] for entry in resumed.log) == 8  # control: of the epochs alone


def test_the_peak_is_known_where_the_system_tells() -> None:
    assert (loop._peak_bytes(torch.device("cpu")) or 0) > 1 << 20


def test_the_randomness_of_the_caller_is_left_alone(blind: Task) -> None:
    state = torch.get_rng_state()
    train(toy(stages_=2), blind, quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), state)  # control


def test_the_log_and_the_result_say_how_they_came_to_be(task: Task, tmp_path: Path) -> None:
    trained = train(toy(stages_=2), task, folder=tmp_path / "run", quiet=True)
    assert [(e["stage"], e["epoch"]) for e in trained.log] == [
        (f"stage {n}", e) for n in range(2) for e in (1, 2, 3)
    ]
    lines = (tmp_path / "run" / loop.LOG).read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(trained.log)
    assert trained.seconds > sum(entry["seconds"] for entry in trained.log)
    assert trained.diverged is None
    (made,) = trained.clip.history.edits
    assert made["method"] == "toy" and made["trained"] and made["numbers"]["lr"] == 0.02
    assert made["request"] == FORGET.to_json() and made["seed"] == 0
    assert json.loads(json.dumps(made)) == made
    before = task.clip.model.get_parameter(KEY)
    assert not torch.equal(before, weight(trained)) and task.clip.changes == ()


def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts in KiB, macOS in bytes. Oracle: a block that must have been held."""
    block = torch.ones(8 << 20)
    linux = loop._peak_bytes(torch.device("cpu"))
    assert block.nbytes < linux < 1 << 40
    monkeypatch.setattr(sys, "platform", "darwin")
    assert loop._peak_bytes(torch.device("cpu")) == pytest.approx(linux / 1024, rel=0.1)


# Interruption.


class Killed(BaseException):
    """What no code here catches."""


def killed_at(step: int) -> dict[str, Any]:
    left = [step]

    def count() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return {"after_step": count}


@pytest.mark.parametrize(
    "name, settings", [("sgd", Settings()), ("adam", Settings()), ("adam", Settings(patience=1))]
)
@pytest.mark.parametrize("at", [2, 4, 7, 12, 13, 18, 24])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    task: Task, tmp_path: Path, at: int, settings: Settings, name: str
) -> None:
    """Four steps an epoch, three epochs a stage, two stages; killed in each kind of place."""
    numbers: dict[str, Any] = {"optimizer": name, "stages_": 2, "lr": 0.1}
    whole_steps: list[None] = []
    whole = train(toy(counting(whole_steps), **numbers), task, settings, quiet=True)
    at = min(at, len(whole_steps))
    with pytest.raises(KeyboardInterrupt):
        train(toy(killed_at(at), **numbers), task, settings, folder=tmp_path, quiet=True)
    steps: list[None] = []
    resumed = train(toy(counting(steps), **numbers), task, settings, folder=tmp_path, quiet=True)
    assert same(whole, resumed)
    assert len(steps) == len(whole_steps) - (at - 1) // 4 * 4  # it did go on, not begin anew
    again = train(toy(killed_at(1), **numbers), task, settings, folder=tmp_path, quiet=True)
    assert same(whole, again)  # nothing is left to do


def counting(steps: list[None]) -> dict[str, Any]:
    return {"after_step": lambda: steps.append(None)}


@pytest.mark.parametrize("what", ["restore_optimizer", "seed"])
def test_it_takes_the_optimiser_and_the_seed_to_resume(
    task: Task, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    whole = train(toy(stages_=2), task, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train(toy(killed_at(6), stages_=2), task, folder=tmp_path, quiet=True)
    if what == "seed":
        monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    else:
        monkeypatch.setattr(checkpoint, what, lambda optimizer, state: None)
    assert not same(whole, train(toy(stages_=2), task, folder=tmp_path, quiet=True))


@pytest.mark.parametrize("scored", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_moment_of_writing_is_safe(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    """Killed before and after each file that the run writes, in turn: it goes on all the same."""
    hooks = {"stage": {"scored": scored}}
    numbers = {"stages_": 2, "epochs": 2, "lr": 0.1, "batch_size": 30}
    whole = train(toy(hooks, **numbers), task, quiet=True)
    rename = Path.replace
    left = [0.0]

    def replace_(self: Path, target: Path) -> Path:
        left[0] -= 0.5
        if left[0] == 0:
            raise Killed
        moved = rename(self, target)
        left[0] -= 0.5
        if left[0] == 0:
            raise Killed
        return moved

    monkeypatch.setattr(Path, "replace", replace_)
    monkeypatch.setattr(files, "_sync", lambda path: None)  # no power is cut here, and it is slow
    moments = 0
    while True:
        moments += 1
        left[0], folder = moments / 2, tmp_path / str(moments)
        try:
            train(toy(hooks, **numbers), task, folder=folder, quiet=True)
            break
        except Killed:
            left[0] = math.inf
        resumed = train(toy(hooks, **numbers), task, folder=folder, quiet=True)
        assert same(whole, resumed), moments
        lines = (folder / loop.LOG).read_text().splitlines()
        assert [json.loads(line) for line in lines] == list(resumed.log)
    # Four epochs with a checkpoint and a log each, two ends with a third file, before and after.
    assert moments - 1 == 2 * (4 * 2 + 2 * 3)


def test_another_run_is_refused(task: Task, blind: Task, tmp_path: Path) -> None:
    train(toy(epochs=1), task, folder=tmp_path, quiet=True)
    other = task.clip.with_parameters({KEY: torch.ones(128)}, {"method": "other"})
    more = shots(5, seed=9)
    brighter = from_tensors(task.shots.read(torch.arange(30)) + 1, task.shots.labels,
                            task.shots.domains, task.shots.source)  # fmt: skip
    config = task.clip.config
    quick = replace(task.clip, config={**config, "model_cfg": {**config["model_cfg"],
                                                               "quick_gelu": True}})  # fmt: skip
    words = replace(task.words, class_templates=("a picture of a {class}.",))
    cases: list[tuple[Toy, Task, Settings, str]] = [
        (toy(epochs=1, lr=0.03), task, Settings(), "numbers.lr: 0.02, now 0.03"),
        (toy(epochs=1), replace(task, clip=other), Settings(), "model.edits.visual: "),
        (toy(epochs=1), replace(task, clip=quick), Settings(), "model.model_cfg.quick_gelu: "),
        (toy(epochs=1), replace(task, forget=Forget(classes=["car"])), Settings(), "request."),
        (toy(epochs=1), replace(task, words=words), Settings(), "words.templates.class: "),
        (toy(epochs=1), replace(task, seed=1), Settings(), "seed: 0, now 1"),
        (toy(epochs=1), replace(task, shots=more), Settings(), "shots.contents: "),
        (toy(epochs=1), replace(task, shots=brighter), Settings(), "shots.contents: "),
        (toy(epochs=1), replace(task, shots=task.shots.subset(torch.arange(29))), Settings(),
         "shots."),
        (toy(epochs=1), blind, Settings(), "validation.contents: "),
        (toy(epochs=1), task, Settings(patience=3), "settings.patience: 0, now 3"),
    ]  # fmt: skip
    assert brighter.source == task.shots.source
    for method, given, settings, differs in cases:
        with pytest.raises(OtherRun, match=rf"holds another run \({differs}"):
            train(method, given, settings, folder=tmp_path, quiet=True)
    train(toy(epochs=1), replace(task), folder=tmp_path, quiet=True)  # control


def test_a_damaged_checkpoint_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(toy(killed_at(14), stages_=2), task, folder=tmp_path, quiet=True)
    path = tmp_path / loop.CHECKPOINT
    whole = path.read_bytes()
    said, parts = checkpoint.read_state(path)

    def refused(message: str = "is not a training checkpoint") -> None:
        with pytest.raises(ValueError, match=message):
            train(toy(stages_=2), task, folder=tmp_path, quiet=True)

    for damaged in (b"", whole[: len(whole) // 2], b"{}" + whole, whole + b"x"):
        path.write_bytes(damaged)
        refused()
    checkpoint.write_state(path, {**said, "more": 1}, **parts)
    refused()
    checkpoint.write_state(path, {**said, "epoch": 1})
    refused("holds other parameters than this method trains")
    path.write_bytes(whole)
    stage = tmp_path / "stage-0.safetensors"
    held = stage.read_bytes()
    stage.unlink()
    refused("stage-0.safetensors is not a training checkpoint")
    stage.write_bytes(held)
    resumed = train(toy(stages_=2), task, folder=tmp_path, quiet=True)  # control
    assert same(resumed, train(toy(stages_=2), task, quiet=True))


# Which epoch a stage ends with.


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Let validation find these scores, one after the other."""

    def given(*values: float) -> list[float]:
        left = list(values)

        def validate(*_: object) -> dict[str, float | None]:
            score = left.pop(0)
            return dict.fromkeys(FIGURES) | {"balance": score}

        monkeypatch.setattr(loop, "validate", validate)
        return left

    return given


def of_epoch(task: Task, epochs: int, **numbers: Any) -> Trained:
    """The oracle: as many epochs, and the last of them."""
    stage = {"scored": False, "cosine": False}
    return train(toy({"stage": stage}, epochs=epochs, **numbers), task, quiet=True)


def test_a_stage_ends_with_its_best_epoch(task: Task) -> None:
    """Oracle: runs of 1, 2, ... epochs, each judged by itself."""
    numbers = {"lr": 0.3, "batch_size": 3}
    runs = [of_epoch(task, epochs, **numbers) for epochs in range(1, 7)]
    found = [run.log[-1]["validation"]["balance"] for run in runs]
    best = found.index(max(found))
    assert best < 5 and len(set(found)) > 1
    chosen = train(toy({"stage": {"cosine": False}}, epochs=6, **numbers), task, quiet=True)
    assert [entry["validation"]["balance"] for entry in chosen.log] == found
    assert torch.equal(weight(chosen), weight(runs[best]))
    assert not torch.equal(weight(chosen), weight(runs[-1]))  # control


@pytest.mark.parametrize(
    "given, patience, epoch, ended",
    [
        ((0.2, 0.5, 0.5, 0.1, 0.4), 0, 2, 5),  # of equal ones the first
        ((0.0, 0.0, 0.0, 0.0, 0.0), 0, 1, 5),
        ((0.2, 0.5, 0.5, 0.1, 0.9), 2, 2, 4),  # stopped before the best of all
        ((0.2, 0.5, 0.5, 0.1, 0.9), 3, 5, 5),
        ((0.9, 0.5, 0.8, 0.1, 0.9), 1, 1, 2),
        ((0.1, 0.2, 0.3, 0.4, 0.5), 1, 5, 5),
    ],
)
def test_patience(
    task: Task,
    scores: Callable[..., list[float]],
    given: tuple[float, ...],
    patience: int,
    epoch: int,
    ended: int,
) -> None:
    left = scores(*given)
    method = toy({"stage": {"cosine": False}}, epochs=5)
    chosen = train(method, task, Settings(patience=patience), quiet=True)
    assert len(chosen.log) == ended == 5 - len(left)
    scores(*[0.0] * epoch)
    assert torch.equal(weight(chosen), weight(of_epoch(task, epoch)))


def test_a_stage_stops_when_it_says_so(task: Task) -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 1)
        return asked[-1]

    hooks = {"stage": {"stop": stop, "cosine": False, "scored": False}}
    stopped = train(toy(hooks, epochs=9), task, quiet=True)
    assert asked == [False, True] and len(stopped.log) == 2
    assert torch.equal(weight(stopped), weight(of_epoch(task, 2)))


def test_without_validation_a_stage_ends_with_its_last_epoch(blind: Task) -> None:
    scored = train(toy({"stage": {"cosine": False}}, epochs=3), blind, quiet=True)
    assert torch.equal(weight(scored), weight(of_epoch(blind, 3)))
    assert not torch.equal(weight(scored), weight(of_epoch(blind, 2)))  # control
    assert "validation" not in scored.log[0]


def test_validation_is_what_the_returned_model_does(clip: Clip, unchecked: Any) -> None:
    """Oracle: the returned model's own embeddings of the same images, in one batch."""

    @dataclass(frozen=True)
    class Projection(Toy):
        def stages(self, task: Task) -> Stages:
            student = with_weights(task, Weights(task.clip.model, ["visual.proj"]))

            def loss(batch: Minibatch) -> Mapping[str, Tensor]:
                logits, gone = student.logits(task, batch.images), batch.forgotten
                entropy = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
                return {"all": torch.where(gone, -entropy, entropy).mean()}

            yield Stage(
                name="project",
                student=student,
                loss=loss,
                optimizer=lambda trained: torch.optim.Adam(trained, lr=self.lr),
                epochs=self.epochs,
                batch_size=self.batch_size,
            )
            return student

    train_on, judge = from_bundled(clip, WORDS.classes, tuple(WORDS.domains), 1, 3, seed=7)
    task = Task(clip, FORGET, WORDS, train_on, judge)
    trained = train(Projection(epochs=3, lr=0.01, batch_size=5), task, quiet=True)
    images = judge.read(torch.arange(len(judge)))

    def judged(model: Clip) -> dict[str, Any]:
        classifier = model.encode_text([f"a photo of a {name}." for name in WORDS.classes])
        found = predict(model.encode_image(images), classifier)
        mask = torch.tensor([[False, True], [False, False], [False, False]])
        grid = accuracy_grid(found, judge.labels, judge.domains, 3, 2)
        figures = grid_figures(grid, mask)
        return {name: value for name, value in figures.items() if name in ("forgotten", "kept")}

    logged = [entry["validation"] for entry in trained.log]
    best = max(range(3), key=lambda epoch: logged[epoch]["balance"])
    assert judged(trained.clip).items() <= logged[best].items()
    assert judged(trained.clip) != judged(clip)  # control


# When a loss is no longer finite.


def spoilt_from(step: int, value: float = math.nan) -> dict[str, Any]:
    left = [step]

    def spoil(terms: dict[str, Tensor]) -> dict[str, Tensor]:
        left[0] -= 1
        return {**terms, "bad": terms["mem"] * (value if left[0] < 0 else 0.0)}

    return {"spoil": spoil}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_gives_the_last_good_epoch(blind: Task, value: float) -> None:
    hooks = {**spoilt_from(9, value), "stage": {"cosine": False}}
    trained = train(toy(hooks, epochs=5), blind, quiet=True)
    assert trained.diverged is not None
    assert "in stage 'stage 0', epoch 3, step 2" in trained.diverged
    assert f"bad {value:g}" in trained.diverged
    assert len(trained.log) == 2
    assert torch.equal(weight(trained), weight(of_epoch(blind, 2)))


def test_it_gives_the_best_epoch_where_epochs_are_scored(
    task: Task, scores: Callable[..., list[float]]
) -> None:
    for scored, epoch in ((True, 1), (False, 3)):
        scores(0.5, 0.4, 0.3)
        hooks = {**spoilt_from(13), "stage": {"cosine": False, "scored": scored}}
        trained = train(toy(hooks, epochs=5), task, quiet=True)
        scores(*[0.0] * epoch)
        assert torch.equal(weight(trained), weight(of_epoch(task, epoch)))


def test_in_the_first_epoch_of_all_it_is_an_error(blind: Task) -> None:
    with pytest.raises(RuntimeError, match="epoch 1, step 4, before one epoch had ended: lower"):
        train(toy(spoilt_from(3)), blind, quiet=True)
    train(toy(spoilt_from(4)), blind, quiet=True)  # control


def test_in_the_first_epoch_of_a_stage_it_gives_where_the_stage_began(
    blind: Task, tmp_path: Path
) -> None:
    first = train(toy(), blind, quiet=True)
    trained = train(toy(spoilt_from(13), stages_=2), blind, folder=tmp_path, quiet=True)
    assert trained.diverged is not None and "'stage 1', epoch 1, step 2" in trained.diverged
    torch.manual_seed(0)
    began = weight(first) + (torch.randn(2, 64) / 50).flatten()
    assert torch.equal(weight(trained), began)
    # What is resumed diverges again, at the same place.
    again = train(toy(spoilt_from(1), stages_=2), blind, folder=tmp_path, quiet=True)
    assert again.diverged == trained.diverged and same(again, trained)


@pytest.mark.parametrize("last", [False, True])
def test_a_parameter_that_is_not_finite_is_found_where_no_loss_shows_it(
    blind: Task, last: bool, tmp_path: Path
) -> None:
    optimizers: list[torch.optim.Optimizer] = []
    steps: list[None] = []

    def ruin() -> None:
        steps.append(None)
        if len(steps) == (12 if last else 8):
            optimizers[0].param_groups[0]["params"][0].data[0, 0] = math.nan

    hooks = {"optimizers": optimizers, "after_step": ruin, "stage": {"cosine": False}}
    trained = train(toy(hooks), blind, folder=tmp_path, quiet=True)
    epoch = 3 if last else 2
    assert trained.diverged is not None
    assert f"finite in stage 'stage 0', at the end of epoch {epoch}" in trained.diverged
    assert torch.equal(weight(trained), weight(of_epoch(blind, epoch - 1)))
    assert len(trained.log) == epoch - 1
    _, parts = checkpoint.read_state(tmp_path / loop.CHECKPOINT)
    assert torch.isfinite(parts["trained"]["weight"]).all()


# Requests and settings.


def test_a_method_refuses_requests_it_does_not_take(task: Task) -> None:
    whole = replace(task, forget=Forget(domains=["sketch"]))
    with pytest.raises(ValueError, match="toy does not take .* 'domain'; it takes: global, cell"):
        train(toy(), whole, quiet=True)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'fp16'"):
        Settings(precision="fp16")
    with pytest.raises(ValueError, match="patience must be at least 0 epochs, got -1"):
        Settings(patience=-1)


@pytest.fixture(autouse=True)
def not_noisy(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A quiet run says nothing."""
    yield
    assert capsys.readouterr() == ("", "")
