"""One training loop for every method: order, schedule, log, early stop, checkpoint, resume."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.files import new_file
from nullspace_unlearn.fingerprint import Fingerprint, OtherRun, code_of, in_words, machine
from nullspace_unlearn.progress import progress
from nullspace_unlearn.train import checkpoint
from nullspace_unlearn.train.augment import augment
from nullspace_unlearn.train.method import Stage, TrainedMethod
from nullspace_unlearn.train.shots import Shots
from nullspace_unlearn.train.task import Minibatch, Student, Task, forward_in, validate

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Settings:
    """What does not depend on the method.

    Attributes:
        precision: "fp32", or "bf16" for forward passes in bfloat16 where that is safe.
        patience: Epochs without a better validation score after which a stage ends; 0: never.
    """

    precision: str = "fp32"
    patience: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"training precision must be fp32 or bf16, got {self.precision!r}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0 epochs, got {self.patience}")


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run of training gave.

    Attributes:
        clip: The trained model.
        log: One entry an epoch: stage, epoch, learning rate, mean of each term of the loss,
            seconds, and the figures on the validation images.
        seconds: Wall time of all that was done, between stages too, over all runs that were
            resumed, up to what each had kept.
        peak_bytes: Largest memory the process has held: on the GPU if the model is there. None
            where the system does not say (Windows).
        diverged: Why training stopped early, if a loss or a parameter became NaN or infinite; the
            model is then what its stage had to give before: its best or last good epoch, or where
            it began.
    """

    clip: Clip
    log: tuple[Mapping[str, Any], ...]
    seconds: float
    peak_bytes: int | None
    diverged: str | None = None


class _Diverged(Exception):
    """A loss or a parameter is no longer finite."""


@dataclass
class _Run:
    """The state of a run, as it is kept on disk."""

    stage: int = 0
    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    finished: bool = False
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


def train(
    method: TrainedMethod,
    task: Task,
    settings: Settings | None = None,
    *,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Trained:
    """Train a method on a task.

    Args:
        method: The method, with its numbers.
        task: The task.
        settings: Precision and patience.
        folder: Where the run keeps its checkpoint and log after each epoch; a run that finds one
            goes on from there, and ends as if it had not been interrupted. Absent: nothing is kept.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        The trained model and its log.

    Raises:
        OtherRun: If the folder holds another run, or is damaged; a ValueError.
        ValueError: If the method does not take such a request, or a stage has no images.
        RuntimeError: If a loss is NaN or infinite before the first epoch has ended.
    """
    settings = settings or Settings()
    if task.forget.paradigm not in method.paradigms:
        raise ValueError(
            f"{method.name} does not take requests of kind {task.forget.paradigm!r}; it takes: "
            f"{', '.join(method.paradigms)}"
        )
    loop = _Loop(task, settings, None if folder is None else Path(folder), quiet)
    loop.open(method)
    diverged = None
    device = task.clip.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        stages = method.stages(task)
        while diverged is None:
            torch.manual_seed(task.seed)
            try:
                stage = next(stages)
            except StopIteration as end:
                student: Student = end.value
                break
            student = stage.student
            try:
                loop.run(stage)
            except _Diverged as error:
                diverged = str(error)
    provenance = {
        "method": method.name,
        "trained": True,
        "paper": method.paper,
        "numbers": asdict(method),  # type: ignore[call-overload]
        "request": task.forget.to_json(),
        "seed": task.seed,
        "shots": dict(task.shots.source),
    }
    return Trained(
        clip=student.result(provenance),
        log=tuple(loop.state.log),
        seconds=loop.seconds,
        peak_bytes=_peak_bytes(device),
        diverged=diverged,
    )


class _Loop:
    """Runs stages one after the other and keeps what a later process needs to go on."""

    def __init__(self, task: Task, settings: Settings, folder: Path | None, quiet: bool) -> None:
        self.task, self.settings, self.folder, self.quiet = task, settings, folder, quiet
        self.state = _Run()
        self.parts: dict[str, checkpoint.State] = {}
        self.number = -1  # of the stage being run
        self._started = time.perf_counter()
        self._before = 0.0  # seconds of the runs that this one goes on from

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return self._before + time.perf_counter() - self._started

    def open(self, method: TrainedMethod) -> None:
        """Find out whether this run has been begun before."""
        task = self.task
        self.made_from = Fingerprint(
            {
                "method": method.name,
                "numbers": method,
                "settings": self.settings,
                "model": task.clip.fingerprint,
                "request": task.forget.to_json(),
                "words": task.words.to_json(),
                "seed": task.seed,
                "shots": task.shots.fingerprint,
                "validation": task.validation.fingerprint,
                "machine": machine(task.clip.device),
                "code": code_of("train.loop"),
            }
        )
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / CHECKPOINT
        if path.exists():
            try:
                found, self.parts = checkpoint.read_state(path)
            except ValueError as error:
                raise OtherRun(str(error)) from None
            try:
                kept = Fingerprint(dict(found.pop("made_from")))
                self.state = _Run(**found)
            except (KeyError, TypeError, ValueError) as error:
                raise OtherRun(f"{path} is not a training checkpoint: {error}") from None
            if differences := kept.differences(self.made_from):
                raise OtherRun(
                    f"{str(self.folder)!r} holds another run ({in_words(differences)}); remove it "
                    "to begin anew"
                )
            self._before = self.state.seconds

    def run(self, stage: Stage) -> None:
        """Train one stage to its end, or go over it where an earlier process has."""
        self.number += 1
        module = stage.student.module
        if self.number < self.state.stage:
            assert self.folder is not None
            _, parts = checkpoint.read_state(self.folder / f"stage-{self.number}.safetensors")
            checkpoint.restore(module, parts.get("trained", {}))
            return
        shots = self.task.shots if stage.shots is None else stage.shots
        if not len(shots) and not stage.steps:
            raise ValueError(
                f"stage {stage.name!r} has no images to train on: the request leaves none of their "
                "kind"
            )
        optimizer = stage.optimizer([p for p in module.parameters() if p.requires_grad])
        rates = [group["lr"] for group in optimizer.param_groups]
        result = checkpoint.trained_state(module)  # what the stage would end with now
        if self.state.epoch:
            parts, self.parts = self.parts, {}
            checkpoint.restore(module, parts.get("trained", {}))
            checkpoint.restore_optimizer(optimizer, parts.get("optimizer", {}))
            result = parts.get("best") or checkpoint.trained_state(module)
        steps = len(self._order(stage, shots, 0))
        bar = progress(
            total=stage.epochs * steps,
            initial=self.state.epoch * steps,
            desc=stage.name,
            unit="step",
            hidden=self.quiet,
        )
        try:
            with bar:
                while self.state.epoch < stage.epochs and not self.state.finished:
                    better = self._epoch(stage, shots, optimizer, rates, bar)
                    trained = checkpoint.trained_state(module)
                    if better or not stage.scored:
                        result = trained
                    self._keep(
                        trained=trained,
                        optimizer=checkpoint.optimizer_state(optimizer),
                        best={} if result is trained else result,
                    )
        except _Diverged as error:
            if self.number == 0 and self.state.epoch == 0:
                raise RuntimeError(
                    f"{error}, before one epoch had ended: lower the learning rate"
                ) from None
            checkpoint.restore(module, result)
            raise
        checkpoint.restore(module, result)
        self._finish(module)

    def _epoch(
        self,
        stage: Stage,
        shots: Shots,
        optimizer: torch.optim.Optimizer,
        rates: list[float],
        bar: Any,
    ) -> bool:
        """One pass over the images; returns whether it is the best of the stage so far."""
        started = time.perf_counter()
        epoch, state = self.state.epoch, self.state
        order = self._order(stage, shots, epoch)
        sums: dict[str, float] = {}
        for step, chosen in enumerate(order):
            done = (epoch * len(order) + step) / (stage.epochs * len(order))
            factor = 0.5 + 0.5 * math.cos(math.pi * done) if stage.cosine else 1.0
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            for name, value in self._step(stage, shots, chosen, step, optimizer).items():
                sums[name] = sums.get(name, 0.0) + value / len(order)
            bar.update()
        if not self._finite(stage, shots):
            raise _Diverged(
                f"a parameter or an embedding is no longer finite in stage {stage.name!r}, at the "
                f"end of epoch {epoch + 1}"
            )
        said: dict[str, Any] = {"stage": stage.name, "epoch": epoch + 1, "lr": rates[0] * factor}
        said["loss"] = sums
        score = None
        if len(self.task.validation):
            found = validate(self.task, stage.student, stage.batch_size)
            score = found["balance"]
            said["validation"] = found
        said["seconds"] = time.perf_counter() - started
        state.log.append(said)
        state.epoch += 1
        better = score is None or score > state.best
        if score is not None and better:
            state.best, state.best_epoch = score, epoch
        patience = self.settings.patience
        late = bool(patience) and score is not None and epoch - state.best_epoch >= patience
        state.finished = late or (stage.stop is not None and stage.stop())
        bar.set_postfix(_short(said), refresh=False)
        return better

    @torch.no_grad()
    def _finite(self, stage: Stage, shots: Shots) -> bool:
        """Whether a student computes anything; the last step is followed by no loss to show it."""
        student = stage.student
        values = [*student.module.parameters(), student.text()]
        if not stage.steps:
            values.append(student.image(shots.read(torch.arange(1)).to(self.task.clip.device)))
        return all(bool(torch.isfinite(value).all()) for value in values)

    def _step(
        self,
        stage: Stage,
        shots: Shots,
        chosen: Tensor,
        step: int,
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:
        device = self.task.clip.device
        generator = self._generator(self.state.epoch, step + 1)
        labels, domains = shots.labels[chosen], shots.domains[chosen]
        images = shots.read(chosen)
        if stage.augmented:
            images = augment(images, generator)
        batch = Minibatch(
            images=images.to(device),
            labels=labels.to(device),
            domains=domains.to(device),
            forgotten=self.task.mask[labels, domains].to(device),
            generator=generator,
        )
        optimizer.zero_grad(set_to_none=True)
        half = (device.type, torch.bfloat16) if self.settings.precision == "bf16" else None
        with forward_in(half):
            terms = stage.loss(batch)
        total = torch.stack([value.float() for value in terms.values()]).sum()
        if not torch.isfinite(total):
            named = ", ".join(f"{name} {float(value.detach()):g}" for name, value in terms.items())
            raise _Diverged(
                f"a loss is no longer finite ({named}) in stage {stage.name!r}, epoch "
                f"{self.state.epoch + 1}, step {step + 1}"
            )
        total.backward()
        if stage.after_backward is not None:
            stage.after_backward()
        optimizer.step()
        if stage.after_step is not None:
            stage.after_step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def _order(self, stage: Stage, shots: Shots, epoch: int) -> list[Int[Tensor, " b"]]:
        """The images of each step of an epoch."""
        if stage.steps:
            return list(torch.empty(stage.steps, 0, dtype=torch.int64))
        generator = self._generator(epoch, 0)
        forgotten = self.task.forgotten(shots)

        def shuffled(some: Tensor) -> Tensor:
            return some[torch.randperm(len(some), generator=generator)]

        gone, kept = forgotten.nonzero()[:, 0], (~forgotten).nonzero()[:, 0]
        if not stage.balanced or not len(gone) or not len(kept):
            return list(shuffled(torch.arange(len(shots))).split(stage.batch_size))
        half = max(stage.batch_size // 2, 1)
        steps = math.ceil(max(len(gone), len(kept)) / half)

        def drawn(some: Tensor) -> Iterator[Tensor]:
            size = min(half, len(some))
            again = (i for group in repeat(some) for i in shuffled(group).tolist())
            for _ in range(steps):
                yield torch.tensor(list(islice(again, size)))

        pairs = zip(drawn(gone), drawn(kept), strict=True)
        return [torch.cat([first, second]) for first, second in pairs]

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        """Randomness that depends on the place in the run alone, so that it can be resumed."""
        place = f"{self.task.seed}/{self.number}/{epoch}/{step}"
        digest = hashlib.sha256(place.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def _keep(self, **parts: checkpoint.State) -> None:
        """Write down where the run is; a process that dies in between leaves the place before."""
        if self.folder is None:
            return
        self.state.seconds = self.seconds
        said = {"made_from": self.made_from.facts, **asdict(self.state)}
        checkpoint.write_state(self.folder / CHECKPOINT, said, **parts)
        lines = "".join(json.dumps(one) + "\n" for one in self.state.log)
        with new_file(self.folder / LOG, overwrite=True) as file:
            file.write_text(lines, encoding="utf-8")

    def _finish(self, module: nn.Module) -> None:
        """Close a stage: the next one begins from its end."""
        state = self.state
        state.stage, state.epoch, state.finished = self.number + 1, 0, False
        state.best, state.best_epoch = -math.inf, -1
        if self.folder is None:
            return
        # First, since the checkpoint then says that it is there.
        path = self.folder / f"stage-{self.number}.safetensors"
        checkpoint.write_state(path, {}, trained=checkpoint.trained_state(module))
        self._keep()


_SHOWN = ("left", "over", "kept", "balance")


def _short(said: Mapping[str, Any]) -> dict[str, str]:
    """What fits behind a progress bar."""
    shown = {name: f"{value:.2g}" for name, value in said["loss"].items()}
    if found := said.get("validation"):
        shown |= {name: FIGURES[name].written(found[name]) for name in _SHOWN}
    return shown


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # it comes with Unix alone
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
