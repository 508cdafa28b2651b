"""A method trained and measured beside the untouched model, as `nsu train` does it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.clip import save_adapter
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.evaluate.compare import Comparison, check_measurable, compare_models
from nullspace_unlearn.evaluate.verdict import in_words
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed_each
from nullspace_unlearn.files import remove_folder
from nullspace_unlearn.fingerprint import OtherRun
from nullspace_unlearn.train.loop import CHECKPOINT, Settings, Trained, train
from nullspace_unlearn.train.method import TrainedMethod
from nullspace_unlearn.train.task import Task


@dataclass(frozen=True, eq=False)
class Measured:
    """A trained model beside the untouched one.

    Attributes:
        method: The method, with its numbers.
        task: What it was to do.
        settings: What does not depend on the method.
        trained: What came out.
        comparison: Both models on images that no method was given.
        features: The untouched model's features of these.
        seconds: Time to measure.
    """

    method: TrainedMethod
    task: Task
    settings: Settings
    trained: Trained
    comparison: Comparison
    features: Features
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; the log of the training last."""
        method, task, trained, found = self.method, self.task, self.trained, self.comparison
        words, said = task.words.to_json(), found.to_json()
        return {
            "method": method.name,
            "paper": method.paper,
            "numbers": asdict(method),  # type: ignore[call-overload]
            "settings": asdict(self.settings),
            "request": task.forget.to_json(),
            "domains": words["domains"],
            "templates": words["templates"],
            "seed": task.seed,
            "weights_sha256": task.clip.source.sha256,
            "parameter": trained.clip.changed,
            "seconds": {"train": trained.seconds, "measure": self.seconds},
            "peak_bytes": trained.peak_bytes,
            "diverged": trained.diverged,
            "data": self.features.provenance.get("images"),
            **said,
            "images": {
                **said["images"],
                "train": len(task.shots) * method.sees_images,
                "validation": len(task.validation) * method.sees_images,
                "test": int(found.before.count.sum()),
            },
            **in_words(found),
            "scores": {name: _scores(found, name) for name in ("before", "after", "ideal")},
            "training": [dict(entry) for entry in trained.log],
        }

    def save(
        self,
        path: Path,
        overwrite: bool = False,
        undo: str | Path | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the trained model: a model folder, or one of visual prompts.

        Args:
            path: The folder.
            overwrite: Whether an existing one may be replaced.
            undo: File for what brings the original back; not for visual prompts.
            report: What report.json is to say; absent: `to_json`.
        """
        said = self.to_json() if report is None else report
        if self.trained.clip.adapter is None:
            self.trained.clip.save(path, overwrite, undo=undo, report=said)
        else:
            save_adapter(self.trained.clip, path, overwrite, report=said)


def train_and_measure(
    method: TrainedMethod,
    task: Task,
    reported: Source,
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    workers: int = 2,
    quiet: bool = False,
) -> Measured:
    """Train a method on a task, then measure the model beside the untouched one.

    Args:
        method: The method, with its numbers.
        task: The task.
        reported: Images to report on, none of them among those of the task.
        settings: Precision and patience.
        folder: Where the run keeps what it needs to go on, as for `train`; a run that kept nothing
            leaves none.
        overwrite: Whether another run in that folder may be removed.
        batch_size: Images per forward pass when measuring.
        workers: Threads that read images ahead.
        quiet: Whether to leave out progress bars.

    Returns:
        Model and measurement.

    Raises:
        OtherRun: If the folder holds another run and `overwrite` is false; a ValueError.
        ValueError: As for `train`, or if the images to report on cannot be embedded.
    """
    settings = settings or Settings()
    try:
        try:
            trained = train(method, task, settings, folder=folder, quiet=quiet)
        except OtherRun:
            if not overwrite or folder is None:
                raise
            remove_folder(folder)
            trained = train(method, task, settings, folder=folder, quiet=quiet)
    finally:
        if folder is not None and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    started = time.perf_counter()
    before, after = embed_each(
        (task.clip, trained.clip), reported, batch_size=batch_size, workers=workers, quiet=quiet
    )
    compared = compare_models(
        task.clip, trained.clip, before, after, task.forget, task.words.class_templates
    )
    seconds = time.perf_counter() - started
    return Measured(method, task, settings, trained, compared, before, seconds)


def check_reported(task: Task, reported: Source) -> None:
    """Refuse images that the figures cannot be told from, before any work is spent.

    Args:
        task: The task.
        reported: Images to report on.

    Raises:
        ValueError: If their classes differ, or none is of what goes or of what stays.
    """
    other = sorted(set(task.words.classes) ^ set(reported.classes))
    if other:
        raise ValueError(
            f"the images to report on must be of the same classes as those to train on; "
            f"{', '.join(map(repr, other[:5]))} {'is' if len(other) == 1 else 'are'} in one alone"
        )
    check_measurable(task.forget, reported)


def check_run(folder: Path) -> None:
    """Refuse a folder beside the output that is no run's: it would be removed in the end.

    Args:
        folder: Where a run would be kept.

    Raises:
        ValueError: If it holds something else.
    """
    if folder.exists() and not (folder / CHECKPOINT).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(
                f"{str(folder)!r} is where this run would keep its checkpoint, and holds something "
                "else; move it, or name another --output"
            )


def _scores(found: Comparison, model: str) -> dict[str, float | None]:
    """The figures by the names that ADU (arXiv 2510.08132) calls them by."""
    return {name: found.figures[model][name] for name in ("mem", "for", "h")}
