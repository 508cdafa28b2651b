"""`nsu train`: a trained unlearning method on a few labelled images, measured and written."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import completion, options
from nullspace_unlearn.cli.data import DataOptions, class_word_option, say_skipped
from nullspace_unlearn.cli.options import BUNDLED, gathered, pairs
from nullspace_unlearn.cli.outputs import OutputOptions, output_files
from nullspace_unlearn.cli.request import CellOptions, cell_options, default_name
from nullspace_unlearn.cli.shown import comparison_lines
from nullspace_unlearn.trained import listed

_OF_THE_RUN = ("seconds", "peak_bytes")  # which differ when the same is done again

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nullspace_unlearn.clip import Clip, Layout
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.evaluate.compare import Comparison
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.train import Measured, Settings, Task, TrainedMethod
    from nullspace_unlearn.words import Words


@dataclass(frozen=True)
class Found:
    """The images of a run, in three parts that share none.

    Attributes:
        given: Images to train on.
        validation: Images to choose the epoch by.
        reported: Images to report on.
        left_out: How many of the images to report on were left out, since the run learns from them.
    """

    given: Source
    validation: Source
    reported: Source
    left_out: int = 0


@dataclass(frozen=True)
class ShotOptions:
    """The options of `shot_options`, as given."""

    data: str | None
    listing: str | None
    class_word: tuple[str, ...]
    shots: int
    validation: int
    test: str | None
    test_listing: str | None
    num_workers: int
    seed: int

    def find(self, domain_words: Mapping[str, str], model: str, quiet: bool = False) -> Found:
        """Look at the images and part them before anything is computed.

        Args:
            domain_words: Domain folder -> word.
            model: The model's name; the bundled one learns from the bundled pictures.
            quiet: Whether to say nothing of how the images were read.

        Raises:
            ValueError: If the images cannot be used, or none is left to report on.
        """
        from nullspace_unlearn.data.bundled import bundled_to_learn
        from nullspace_unlearn.data.source import apart

        source = self._of(self.data, self.listing).find(domain_words, model, quiet)
        if source is None:
            raise ValueError("give --data ROOT: a trained method learns from a few images")
        if self.test is None and self.test_listing is not None:
            raise ValueError("--test-list names images of a folder: give --test ROOT")
        test = None
        if self.test is not None:
            test = self._of(self.test, self.test_listing).find(domain_words, model, quiet)
        for option, found in (("--data", source), ("--test", test)):
            if found is not None and found.features is not None:
                raise ValueError(f"{option} must be images: a method that trains needs no features")
        if self.data in (None, BUNDLED):
            given, validation = bundled_to_learn(self.shots, self.validation, self.seed)
            rest = source  # other seeds
        else:
            given, validation, rest = source.split(self.shots, self.validation, self.seed)
        reported = rest if test is None else test
        if not len(reported):
            raise ValueError("no image is left to report on: give --test ROOT, or fewer --shots")
        return Found(given, validation, *apart(reported, given, validation))

    def task(self, clip: Clip, found: Found, forget: Forget, words: Words) -> Task:
        """The images to train on and to choose the epoch by, preprocessed, and what to forget.

        Args:
            clip: The model.
            found: What `find` found.
            forget: The request.
            words: Classes, domains and templates.

        Raises:
            ValueError: If a file cannot be read, or the request does not go with the images.
        """
        from nullspace_unlearn.train import Task, from_source

        shots = from_source(clip, found.given, self.num_workers)
        validation = from_source(clip, found.validation, self.num_workers)
        return Task(clip, forget, words, shots, validation, self.seed)

    def _of(self, root: str | None, listing: str | None) -> DataOptions:
        # The pictures to report on stay the same whatever is drawn to train on.
        return DataOptions(root, listing, self.class_word, 64, self.num_workers, seed=0)


shot_options = gathered(
    "images",
    ShotOptions,
    click.option(
        "--data",
        metavar="ROOT",
        help="Images to draw from, of any kind that evaluate takes, or nsu-mini: the bundled ones.",
    ),
    click.option("--list", "listing", metavar="FILE", help="Draw only images this file lists."),
    class_word_option,
    click.option(
        "--shots",
        default=8,
        show_default=True,
        type=click.IntRange(1),
        help="Labelled images of every class in every domain to train on.",
    ),
    click.option(
        "--validation",
        default=4,
        show_default=True,
        type=click.IntRange(0),
        help="Others to choose the best epoch by; 0: the last epoch is taken.",
    ),
    click.option(
        "--test",
        metavar="ROOT",
        help="Images to report on, without any that was drawn; absent: those of --data that were "
        "not drawn.",
    ),
    click.option(
        "--test-list", "test_listing", metavar="FILE", help="Report on those this file lists."
    ),
    click.option("--num-workers", default=2, show_default=True, type=click.IntRange(1)),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0, 100_000),
        help="Fixes the images drawn, initial weights, order and noise.",
    ),
)


@dataclass(frozen=True)
class MethodOptions:
    """The options of `method_options`, as given."""

    method: str
    epochs: str | None
    lr: str | None
    batch_size: str | None
    set: tuple[str, ...]
    patience: int
    precision: str

    def make(self, forget: Forget, validation: int) -> tuple[TrainedMethod, Settings]:
        """The method with its numbers.

        Args:
            forget: The request, which it must take.
            validation: Validation images a cell.

        Raises:
            ValueError: If the method or a number is unknown or cannot be, or does not go with the
                rest.
        """
        from nullspace_unlearn.train import METHODS, Settings, configure

        numbers = pairs("--set", self.set)
        for name, value in (
            ("epochs", self.epochs), ("lr", self.lr), ("batch_size", self.batch_size),
        ):  # fmt: skip
            if value is not None and name in numbers:
                raise ValueError(f"--set {name} is given as an option too: leave out one")
            if value is not None:
                numbers[name] = value
        made = configure(self.method, numbers)
        if forget.paradigm not in made.paradigms:
            what = {
                "global": "a class everywhere",
                "cell": "a class in some domains",
                "domain": "whole domains",
            }
            able = [name for name, one in METHODS.items() if forget.paradigm in one.paradigms]
            raise ValueError(
                f"method {self.method!r} does not forget {what[forget.paradigm]}, only "
                f"{' or '.join(what[one] for one in made.paradigms)}; those that do: "
                f"{', '.join(able)}"
            )
        if self.patience and not validation:
            raise ValueError(
                "--patience waits for a better score on --validation images, and there are 0"
            )
        return made, Settings(self.precision, self.patience)


method_options = gathered(
    "how",
    MethodOptions,
    click.argument("method", shell_complete=completion.trained),
    click.option("--epochs", metavar="N", help="Passes over the images; absent: the method's own."),
    click.option("--lr", metavar="NUMBER", help="Largest learning rate; absent: the method's own."),
    click.option("--batch-size", metavar="N", help="Images a step; absent: the method's own."),
    click.option("--set", multiple=True, metavar="KEY=VALUE", help="Another number of the method."),
    click.option(
        "--patience",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="End after so many epochs without a better score on the validation images; 0: never.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        show_default=True,
        help="Forward passes in bfloat16 where that is safe; weights are always float32.",
    ),
)


@dataclass(frozen=True)
class RunOptions:
    """The options of `run_files`, as given."""

    files: OutputOptions
    curve: str | None

    def claim(self, default: str, method: str) -> tuple[Path, Path]:
        """Refuse outputs before any work is spent.

        Args:
            default: The folder's name where none is given.
            method: The method's name.

        Returns:
            The folder to write, and where the run is kept.

        Raises:
            ValueError: If one exists, cannot be written, or cannot be of this method.
        """
        from nullspace_unlearn.files import clear_leftovers
        from nullspace_unlearn.report.picture import check_picture
        from nullspace_unlearn.train.measured import check_run

        options.keep_contents(options.cache_folder(None, False))
        target = self.files.target(default)
        if self.files.undo and method in listed() and listed()[method].adapter:
            raise ValueError(f"{method} changes no weights, so there is nothing to --undo")
        run = Path(f"{target}.run")
        self.files.claim(target, self.curve, working=run)
        clear_leftovers(run)
        check_run(run)
        for picture in (self.files.heatmap, self.curve):
            if picture:
                check_picture(picture)
        return target, run

    def draw(self, measured: Measured) -> None:
        """Draw the pictures that are asked for."""
        from nullspace_unlearn.report.plots import training_curve

        self.files.draw(measured.comparison)
        if self.curve:
            training_curve(measured.trained.log, self.curve, self.files.overwrite)


run_files = gathered(
    "outputs",
    RunOptions,
    output_files,
    click.option("--curve", metavar="PNG", help="Also draw losses and validation scores by epoch."),
)


@click.command(
    epilog="\b\nMethods:\n" + "\n".join(f"{one.name:20}{one.paper}" for one in listed().values())
)
@method_options
@options.model_options
@cell_options
@shot_options
@run_files
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
@options.output_options
def train(
    how: MethodOptions,
    model: str,
    pretrained: str | None,
    cells: CellOptions,
    images: ShotOptions,
    outputs: RunOptions,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Forget by training METHOD on a few labelled images of every class in every domain.

    \b
    nsu train memorise_forget --all-classes --domain sketch --output out
    nsu train ascent --class car --data ROOT --shots 8 --set towers=both --output out

    Writes a folder that stock open_clip loads as local-dir:DIR, and shows the accuracy of every
    class in every domain before and after, on images that the training has not seen. What a run
    needs to go on is kept in DIR.run until it is done: the same command again resumes it.
    """  # noqa: D301
    from nullspace_unlearn.files import remove_folder

    asked = cells.forget()
    target, run = outputs.claim(default_name(model, asked, "by", how.method), how.method)
    method, settings = how.make(asked, images.validation)
    found = images.find(cells.domain_words(), model, quiet)
    started = time.perf_counter()
    clip = options.load_model(model, pretrained, device, "fp32")
    task = images.task(clip, found, *cells.resolve(clip, found.given))
    _check(task, found, how, target, outputs)
    loaded = time.perf_counter() - started
    try:
        measured = _measured(
            method, task, found, settings, run, outputs.files.overwrite, quiet or as_json
        )
        said = measured.to_json()
        said["images"] |= {"shots": images.shots, "left_out_of_test": found.left_out}
        said |= options.made_by(clip)
        # Without what differs from run to run: the same command twice gives the same folder.
        report = {name: value for name, value in said.items() if name not in _OF_THE_RUN}
        report["training"] = [
            {name: value for name, value in epoch.items() if name not in _OF_THE_RUN}
            for epoch in said["training"]
        ]
        measured.save(target, outputs.files.overwrite, outputs.files.undo, report)
        said["seconds"] |= {"load": loaded}
    except KeyboardInterrupt:
        if not run.exists():
            raise
        click.echo("nsu: interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    remove_folder(run)
    outputs.draw(measured)
    said["output"] = str(target)
    if as_json:
        options.print_json(said)
    elif not quiet:
        click.echo(_report(said, task.forget, measured.comparison, clip.source.layout))
    if measured.trained.diverged:
        click.echo(
            f"nsu: training stopped early: {measured.trained.diverged}; wrote the model of the "
            "last good epoch",
            err=True,
        )
        sys.exit(1)


def _check(task: Task, found: Found, how: MethodOptions, target: Path, outputs: RunOptions) -> None:
    """Refuse what cannot be measured or written, before any work is spent."""
    from nullspace_unlearn.clip import check_outputs
    from nullspace_unlearn.train.measured import check_reported

    check_reported(task, found.reported)
    source = task.clip.source
    source.layout.check_whole()
    check_outputs(
        source,
        target,
        Path(outputs.files.undo) if outputs.files.undo else None,
        outputs.files.overwrite,
    )
    if listed()[how.method].adapter and source.sha256 is None:
        raise ValueError(
            f"{how.method} makes prompts for a model with weights, and these are random"
        )


def _measured(
    method: TrainedMethod,
    task: Task,
    found: Found,
    settings: Settings,
    run: Path,
    overwrite: bool,
    quiet: bool,
) -> Measured:
    from nullspace_unlearn.train import train_and_measure

    measured = train_and_measure(
        method, task, found.reported, settings, folder=run, overwrite=overwrite, quiet=quiet
    )
    say_skipped(measured.features)
    return measured


def _report(result: dict[str, Any], forget: Forget, comparison: Comparison, layout: Layout) -> str:
    where = f" in {', '.join(forget.domains)}" if forget.domains else " everywhere"
    what = ", ".join(forget.names) or "every class"
    seconds, images = result["seconds"], result["images"]
    tensors, scores = len(result["parameter"]), result["scores"]
    trained = f"{tensors} tensor{'s' * (tensors > 1)}" if tensors else "visual prompts"
    given = "It looked at no image"
    if images["train"]:
        given = (
            f"It was given {images['train']} labelled images ({images['shots']} a cell) to train "
            f"on and {images['validation']} to choose the epoch by"
        )
    peak = result["peak_bytes"]
    memory = "" if peak is None else f", at most {peak / 2**30:.2f} GiB of memory"
    load = f"load it as nsu.load({result['output']!r})"
    if tensors:
        load = layout.loading(result["output"])
    lines = [
        f"Forgot {what}{where} with {result['method']} ({result['paper']}): {trained} trained in "
        f"{seconds['train']:.1f} s{memory}.",
        f"{given}; reported on {images['test']} others"
        + (
            f" ({images['left_out_of_test']} were left out: they had been drawn)."
            if images["left_out_of_test"]
            else "."
        ),
        "",
        *comparison_lines(comparison, result["method"]),
        "Mem, For, H: "
        + " -> ".join(
            "{mem:.3f}, {for:.3f}, {h:.3f}".format(**scores[name]) for name in ("before", "after")
        )
        + " (kept, forgotten, their harmonic mean)",
        "",
        f"Wrote {result['output']} ({load})",
    ]
    return "\n".join(lines)
