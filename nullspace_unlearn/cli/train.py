"""`nsu train`: a trained unlearning method on a few labelled images, measured and written."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions, class_word_option
from nullspace_unlearn.cli.options import BUNDLED, gathered, pairs
from nullspace_unlearn.cli.request import CellOptions, cell_options, default_name
from nullspace_unlearn.cli.shown import comparison_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.evaluate.compare import Comparison
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.train import Settings, Task, Trained, TrainedMethod
    from nullspace_unlearn.train.shots import Shots
    from nullspace_unlearn.words import Words

PAPERS = {
    "adu": "arXiv 2510.08132",
    "subgroup": "arXiv 2506.03117",
    "cliperase": "arXiv 2410.23330",
    "salun": "arXiv 2310.12508",
    "lipschitz": "arXiv 2407.07485",
    "space_adaptation": "Kravets & Namboodiri, TMLR 2025",
    "ascent": "arXiv 1911.04933",
    "memorise_forget": "arXiv 2510.08132, baseline",
    "finetune": "arXiv 1911.04933",
}
"""Every trained method and where it comes from, known without importing torch."""

ADAPTERS = ("adu",)
"""Those that train visual prompts and leave the weights alone."""


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

    def read(self, clip: Clip, found: Found) -> tuple[Shots, Shots]:
        """The images to train on and to choose the epoch by, preprocessed.

        Args:
            clip: The model.
            found: What `find` found.

        Raises:
            ValueError: If a file cannot be read.
        """
        from nullspace_unlearn.train import from_source

        return (
            from_source(clip, found.given, self.num_workers),
            from_source(clip, found.validation, self.num_workers),
        )

    def measure(
        self, clip: Clip, changed: Clip, found: Found, forget: Forget, words: Words, quiet: bool
    ) -> tuple[Comparison, dict[str, Any]]:
        """Measure a trained model beside the untouched one.

        Args:
            clip: The untouched model.
            changed: The trained one.
            found: What `find` found.
            forget: The request.
            words: The templates.
            quiet: Whether to leave out progress bars.

        Returns:
            The comparison, and where the images come from.
        """
        from nullspace_unlearn.evaluate.compare import compare_models

        reader = self._of(self.test, self.test_listing)
        features = reader.embed(clip, found.reported, quiet)
        again = reader.embed(changed, found.reported, True)
        compared = compare_models(clip, changed, features, again, forget, words.class_templates)
        return compared, dict(features.provenance)

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
    click.argument("method"),
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


@click.command(
    epilog="\b\nMethods:\n" + "\n".join(f"{name:20}{paper}" for name, paper in PAPERS.items())
)
@method_options
@options.model_options
@cell_options
@shot_options
@click.option("--output", metavar="DIR", help="Folder to write; absent: named after the request.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--undo", metavar="FILE", help="Also write what brings the original back, elsewhere.")
@click.option("--heatmap", metavar="PNG", help="Also draw the grids before and after.")
@click.option("--curve", metavar="PNG", help="Also draw losses and validation scores by epoch.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i.")
@options.output_options
def train(
    how: MethodOptions,
    model: str,
    pretrained: str | None,
    cells: CellOptions,
    images: ShotOptions,
    output: str | None,
    overwrite: bool,
    undo: str | None,
    heatmap: str | None,
    curve: str | None,
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
    from nullspace_unlearn.files import clear_leftovers

    asked = cells.forget()
    target = Path(output) if output else Path(default_name(model, asked, "by", how.method))
    if undo and how.method in ADAPTERS:
        raise ValueError(f"{how.method} changes no weights, so there is nothing to --undo")
    run = Path(f"{target}.run")
    options.claim(overwrite, target, undo, heatmap, curve, working=run)
    clear_leftovers(run)
    _check_run(run)
    domain_words = cells.domain_words()
    method, settings = how.make(asked, images.validation)
    found = images.find(domain_words, model, quiet)

    from nullspace_unlearn.clip import check_outputs, save_adapter
    from nullspace_unlearn.evaluate.verdict import in_words
    from nullspace_unlearn.report.picture import check_picture
    from nullspace_unlearn.report.plots import grid_heatmap, training_curve
    from nullspace_unlearn.train import Task

    for picture in (heatmap, curve):
        if picture:
            check_picture(picture)
    started = time.perf_counter()
    clip = options.load_model(model, pretrained, device, "fp32")
    forget, words = cells.resolve(clip, found.given)
    _check_measurable(forget, words, found.reported)
    check_outputs(clip.source, target, Path(undo) if undo else None, overwrite)
    silent = quiet or as_json
    if how.method in ADAPTERS and clip.source.sha256 is None:
        raise ValueError(
            f"{how.method} makes prompts for a model with weights, and these are random"
        )
    shots, validation = images.read(clip, found)
    task = Task(clip, forget, words, shots, validation, images.seed)
    loaded = time.perf_counter()
    try:
        trained = _train(method, task, settings, run, overwrite, silent)
        done = time.perf_counter()
        comparison, source = images.measure(clip, trained.clip, found, forget, words, silent)
        result: dict[str, Any] = {
            "method": how.method,
            "paper": method.paper,
            "numbers": asdict(method),  # type: ignore[call-overload]
            "settings": asdict(settings),
            "request": forget.to_json(),
            "domains": dict(words.domains),
            "templates": words.to_json()["templates"],
            "seed": images.seed,
            "weights_sha256": clip.source.sha256,
            "images": {
                "shots": images.shots,
                "train": len(shots) * method.sees_images,
                "validation": len(validation) * method.sees_images,
                "test": int(comparison.before.count.sum()),
                "left_out_of_test": found.left_out,
            },
            "parameter": [change.key for change in trained.clip.changes],
            "seconds": {
                "load": loaded - started,
                "train": trained.seconds,
                "measure": time.perf_counter() - done,
            },
            "peak_bytes": trained.peak_bytes,
            "diverged": trained.diverged,
            "data": source.get("images"),
            **comparison.to_json(),
            **in_words(comparison),
            "scores": {name: _scores(comparison, name) for name in ("before", "after", "ideal")},
            "training": [dict(one) for one in trained.log],
        }
        if trained.clip.adapter is None:
            trained.clip.save(target, overwrite, undo=undo, report=result)
        else:
            save_adapter(trained.clip, target, overwrite, report=result)
    except KeyboardInterrupt:
        if not run.exists():
            raise
        click.echo("nsu: interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    shutil.rmtree(run)
    if heatmap:
        grid_heatmap(
            comparison.before, comparison.after, comparison.mask, comparison.classes,
            comparison.domains, heatmap, overwrite,
        )  # fmt: skip
    if curve:
        training_curve(trained.log, curve, overwrite)
    result["output"] = str(target)
    if as_json:
        options.print_json(result)
    elif not quiet:
        click.echo(_report(result, forget, comparison))
    if trained.diverged:
        click.echo(
            f"nsu: training stopped early: {trained.diverged}; wrote the model of the last good "
            "epoch",
            err=True,
        )
        sys.exit(1)


def _check_run(run: Path) -> None:
    """Refuse a folder beside the output that is no run's: it would be removed in the end."""
    from nullspace_unlearn.train.loop import CHECKPOINT

    if run.exists() and not (run / CHECKPOINT).is_file():
        if not run.is_dir() or any(run.iterdir()):
            raise ValueError(
                f"{str(run)!r} is where this run would keep its checkpoint, and holds something "
                "else; move it, or name another --output"
            )


def _check_measurable(forget: Forget, words: Words, test: Source) -> None:
    """Refuse images that the figures cannot be told from, before any work is spent."""
    from nullspace_unlearn.evaluate.compare import check_measurable

    other = sorted(set(words.classes) ^ set(test.classes))
    if other:
        raise ValueError(
            f"the images to report on must be of the same classes as those to train on; "
            f"{', '.join(map(repr, other[:5]))} {'is' if len(other) == 1 else 'are'} in one alone"
        )
    check_measurable(forget, test)


def _train(
    method: TrainedMethod, task: Task, settings: Settings, run: Path, overwrite: bool, quiet: bool
) -> Trained:
    """Train, or go on where the run stopped; a run that kept nothing leaves nothing."""
    from nullspace_unlearn.fingerprint import OtherRun
    from nullspace_unlearn.train import train as run_method

    try:
        try:
            trained = run_method(method, task, settings, folder=run, quiet=quiet)
        except OtherRun:
            if not overwrite:
                raise
            shutil.rmtree(run)
            trained = run_method(method, task, settings, folder=run, quiet=quiet)
    finally:
        if run.is_dir() and not any(run.iterdir()):
            run.rmdir()
    return trained


def _scores(comparison: Comparison, model: str) -> dict[str, float | None]:
    """The figures by the names that ADU (arXiv 2510.08132) calls them by."""
    return {name: comparison.figures[model][name] for name in ("mem", "for", "h")}


def _report(result: dict[str, Any], forget: Forget, comparison: Comparison) -> str:
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
    load = f"nsu.load({result['output']!r})" if not tensors else f"local-dir:{result['output']}"
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
        f"Wrote {result['output']} (load it as {load})",
    ]
    return "\n".join(lines)
