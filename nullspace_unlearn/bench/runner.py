"""The trials of a benchmark: listed, run, kept one JSON each, gone on with where a run stopped."""

from __future__ import annotations

import glob
import json
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nullspace_unlearn.bench.choices import choices
from nullspace_unlearn.bench.datasets import Pool
from nullspace_unlearn.bench.methods import Subject, TrialResult, run_method
from nullspace_unlearn.bench.recipe import Entry, Model, Recipe
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.zeroshot import grid_to_json
from nullspace_unlearn.features import Features
from nullspace_unlearn.files import (
    OutputExists,
    new_file,
    read_json,
    read_text,
    refuse_existing,
    refuse_strangers,
)
from nullspace_unlearn.fingerprint import Fingerprint, code_of, in_words, machine
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.progress import progress
from nullspace_unlearn.prototypes import Synthesis
from nullspace_unlearn.words import Words

FORMAT = "nullspace-unlearn benchmark trial 2"
RECIPE = "recipe.yaml"
_HOLDS = ("trials", "embeddings", "table.*", "*.png")
_SHOWN = 16  # characters of a hash in a file's name
_MARK = "# Results of nsu bench, recipe"


@dataclass(frozen=True)
class Trial:
    """One method on one request with one draw of images.

    Attributes:
        entry: The method, with its numbers.
        forget: The request.
        dataset: The data set it speaks of, where there are several.
        seed: Of the draw.
    """

    entry: Entry
    forget: Forget
    dataset: str
    seed: int

    @property
    def what(self) -> str:
        """The request in a few words, as tables and file names say it."""
        names = ", ".join(self.forget.classes) or "every class"
        where = ", ".join(self.forget.domains) or self.dataset or "everywhere"
        return f"{names} in {where}" if where != "everywhere" else f"{names} everywhere"

    def made_from(self, shared: Fingerprint) -> Fingerprint:
        """All that the result follows from; a trial of other facts is another trial.

        Args:
            shared: What all trials follow from.
        """
        entry, kind = self.entry, self.forget.paradigm
        method = asdict(replace(entry, set={}, by_kind={}, kinds=(), label="-"))
        pictures = Synthesis() if entry.prototypes == "pixels" else None
        return Fingerprint(
            {
                **shared.facts,
                "method": {**method, "numbers": entry.resolved(kind), "pictures": pictures},
                "request": self.forget.to_json(),
                "dataset": self.dataset,
                "seed": self.seed,
            }
        )


def trials_of(recipe: Recipe, pools: Sequence[Pool]) -> list[Trial]:
    """Every trial of a recipe: methods in its order, then draws, then requests.

    A method that is given no images has one trial a request, of seed 0, whatever the seeds.

    Args:
        recipe: The recipe.
        pools: Its data.

    Returns:
        The trials.

    Raises:
        ValueError: If a request cannot be met, or a method is to be given images and the data keep
            none for that.
    """
    by_name = {pool.name: pool for pool in pools}
    asked: list[tuple[Forget, str]] = []
    for number, request in enumerate(recipe.requests):
        try:
            found = choices(request, by_name[request.dataset])
        except ValueError as error:
            raise ValueError(f"recipe {recipe.name!r}: requests[{number}]: {error}") from None
        asked += [(forget, request.dataset) for forget in found]
    unique = {json.dumps([forget.to_json(), name]): (forget, name) for forget, name in asked}
    for entry in recipe.methods:
        if entry.drawn and any(pool.learned is None for pool in pools):
            raise ValueError(
                f"{entry.label} is given images, and the data keep none for that: give data.draw "
                "or data.held_out"
            )
    return [
        Trial(entry, forget, name, seed)
        for entry in recipe.methods
        for seed in (recipe.seeds if entry.drawn else (0,))
        for forget, name in unique.values()
        if entry.takes(forget.paradigm)
    ]


@dataclass(frozen=True, eq=False)
class Done:
    """What a run left behind.

    Attributes:
        runs: The JSON of every trial that has a result, in the recipe's order.
        failed: The trials that failed and why.
        found: How many results were there already.
    """

    runs: list[dict[str, Any]]
    failed: list[tuple[Trial, str]]
    found: int

    @property
    def failures(self) -> list[dict[str, str]]:
        """What failed and why, as plain values."""
        return [
            {"trial": f"{trial.entry.label}, {trial.what}, seed {trial.seed}", "error": error}
            for trial, error in self.failed
        ]


def check_output(output: Path, recipe: Recipe, overwrite: bool) -> None:
    """Refuse an output that is not this benchmark's, before any work is spent.

    Args:
        output: The folder.
        recipe: The recipe.
        overwrite: Whether results that are there may be removed.

    Raises:
        OutputExists: If it holds something else than results, or those of a recipe of another name
            while `overwrite` is false.
        ValueError: If it cannot be written to.
    """
    refuse_existing(output, overwrite=True)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    kept = output / RECIPE
    first = read_text(kept).split("\n")[0] if kept.is_file() else ""
    if not first.startswith(_MARK):
        raise OutputExists(f"output {str(output)!r} exists and is no benchmark's; name another")
    if first != _first_line(recipe) and not overwrite:
        raise OutputExists(
            f"output {str(output)!r} holds the results of another recipe than {recipe.name!r}; "
            "name another or pass --overwrite"
        )


def claim(output: Path, recipe: Recipe, text: str, overwrite: bool) -> None:
    """Make the folder of a benchmark, or go on in it.

    Args:
        output: The folder.
        recipe: The recipe.
        text: Its file, kept beside the results.
        overwrite: Whether to begin anew.

    Raises:
        ValueError: As `check_output`.
    """
    check_output(output, recipe, overwrite)
    if overwrite and output.exists():
        refuse_strangers(output, (RECIPE, *_HOLDS), "a benchmark")
        for found in [found for one in _HOLDS for found in output.glob(one)]:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    output.mkdir(parents=True, exist_ok=True)
    with new_file(output / RECIPE, overwrite=True) as temporary:
        temporary.write_text(f"{_first_line(recipe)}\n{text}", encoding="utf-8")


def run(
    recipe: Recipe,
    pools: Sequence[Pool],
    clip: Clip | None,
    trials: Sequence[Trial],
    output: Path,
    *,
    only: Sequence[str] = (),
    quiet: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Done:
    """Run the trials that have no result yet.

    A trial that fails is recorded with its error and the run goes on; the next one tries it again.
    So it does with a result that is damaged. Results that follow from other facts (model,
    images, words, numbers, code, machine) lie in files of their own and are left alone; `note` says
    which facts differ.

    Args:
        recipe: The recipe.
        pools: Its data.
        clip: The model; None where a feature file stands for it.
        trials: The trials, from `trials_of`.
        output: The folder, claimed.
        only: Labels of the methods to run; empty: all. Results of the others count all the same.
        quiet: Whether to leave out progress bars.
        note: Called with a line about each trial that failed, and one about results that do not
            hold any more.

    Returns:
        All results.
    """
    words = {pool.name: _words(recipe, pool, clip) for pool in pools}
    shared = Fingerprint(
        {
            "model": clip.fingerprint if clip else None,
            "images": {pool.name or "images": pool.fingerprint for pool in pools},
            "words": {pool.name or "images": words[pool.name].to_json() for pool in pools},
            "machine": machine(clip.device if clip else "cpu"),
            "code": code_of("bench.runner"),
        }
    )
    made = [trial.made_from(shared) for trial in trials]
    files = [_file(output, trial, of) for trial, of in zip(trials, made, strict=True)]
    results = [_whole(file) for file in files]
    there = sum(found is not None for found in results)
    left = [
        i
        for i, (trial, found) in enumerate(zip(trials, results, strict=True))
        if found is None and (not only or trial.entry.label in only)
    ]
    if changed := _changed([(files[i], made[i]) for i in left]):
        note(f"results of {changed[0]} trials do not hold any more ({in_words(changed[1])})")
    failed: list[tuple[Trial, str]] = []
    subjects: dict[str, Subject] = {}
    if left:
        hidden = any(trial.entry.space == "hidden" for trial in trials)
        subjects = {
            pool.name: _subject(pool, clip, words[pool.name], output, hidden, quiet)
            for pool in pools
        }
    for i in progress(left, desc="trials", unit="trial", hidden=quiet):
        trial = trials[i]
        others = [one for name, one in subjects.items() if name != trial.dataset]
        said = _head(recipe, trial, made[i])
        try:
            own = subjects[trial.dataset]
            said |= _result(run_method(trial.entry, trial.forget, own, others, trial.seed))
        except Exception as error:  # whatever went wrong in one trial, the others are wanted
            said["error"] = " ".join(f"{type(error).__name__}: {error}".split())
            failed.append((trial, said["error"]))
            note(f"{trial.entry.label}, {trial.what}, seed {trial.seed} failed: {said['error']}")
        with new_file(files[i], overwrite=True) as temporary:
            temporary.write_text(json.dumps(said, allow_nan=False), encoding="utf-8")
        results[i] = _whole(files[i])  # None where it failed
    return Done([found for found in results if found is not None], failed, there)


def model_name(model: Model, root: Path) -> str:
    """The model's name as `load` takes it: a relative folder is below the data root."""
    scheme, _, rest = model.name.partition(":")
    return f"local-dir:{root / rest}" if scheme == "local-dir" else model.name


def _words(recipe: Recipe, pool: Pool, clip: Clip | None) -> Words:
    """How a data set's classes and domains are said."""
    own = (clip.words if clip else None) or Words()
    given = recipe.model.templates if recipe.model else ()
    return Words(
        classes=pool.classes,
        domains=pool.domains,
        class_templates=given or own.class_templates,
        cell_templates=own.cell_templates,
    )


def _subject(
    pool: Pool, clip: Clip | None, words: Words, output: Path, hidden: bool, quiet: bool
) -> Subject:
    """The untouched model on a data set; its embeddings are kept with the results."""
    if clip is None:
        return Subject(pool, None, pool.embed(None, hidden, quiet), words)
    made_from = Fingerprint(
        {
            "model": clip.fingerprint,
            "images": pool.reported.fingerprint,
            "hidden": hidden,
            "machine": machine(clip.device),
            "code": code_of("features.embed"),
        }
    )
    name = f"{_slug(pool.name or 'images')}-{made_from.digest[:_SHOWN]}.safetensors"
    file = output / "embeddings" / name
    try:
        features = Features.load(file)
    except ValueError:
        features = pool.embed(clip, hidden, quiet)
        features.save(file, overwrite=True)
    return Subject(pool, clip, features, words)


def _first_line(recipe: Recipe) -> str:
    return f"{_MARK} {recipe.name}, which said:"


def _file(output: Path, trial: Trial, made_from: Fingerprint) -> Path:
    kind = trial.forget.paradigm
    request = f"{kind}-{_slug(trial.what)}-seed{trial.seed}-{made_from.digest[:_SHOWN]}.json"
    return output / "trials" / _slug(trial.entry.label) / request


def _slug(text: str) -> str:
    safe = re.sub(r"^\.|[^\w.=-]+", "_", text)  # no name of a folder above, and none hidden
    return safe.encode()[:80].decode(errors="ignore")


def _whole(file: Path) -> dict[str, Any] | None:
    """A result that is there and whole; None where the trial is to be run."""
    try:
        found = read_json(file)
        whole = found["format"] == FORMAT and "grids" in found
        digest = Fingerprint(found["made_from"]).digest
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole and digest[:_SHOWN] == file.stem[-_SHOWN:] else None


def _changed(wanted: Sequence[tuple[Path, Fingerprint]]) -> tuple[int, list[str]] | None:
    """How many trials have only results of other facts, and the facts, the commonest first."""
    times, differences = 0, Counter[str]()
    for file, now in wanted:
        beside = file.parent.glob(f"{glob.escape(file.stem[:-_SHOWN])}{'?' * _SHOWN}.json")
        newest = max(beside, key=lambda one: one.stat().st_mtime_ns, default=None)
        if newest is not None and newest != file and (found := _whole(newest)):
            times += 1
            differences.update(Fingerprint(found["made_from"]).differences(now))
    return (times, [line for line, _ in differences.most_common()]) if times else None


def _head(recipe: Recipe, trial: Trial, made_from: Fingerprint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "made_from": made_from.facts,
        "recipe": recipe.name,
        "label": trial.entry.label,
        "method": asdict(trial.entry),
        "kind": trial.forget.paradigm,
        "what": trial.what,
        "request": trial.forget.to_json(),
        "dataset": trial.dataset,
        "seed": trial.seed,
        "python": platform.python_version(),
    }


def _result(outcome: TrialResult) -> dict[str, Any]:
    one = outcome.comparison
    return {
        "seconds": outcome.seconds,
        "images": outcome.images,
        "log": dict(outcome.log),
        "forgotten": one.mask.tolist(),
        "grids": {
            name: grid_to_json(grid, one.classes, one.domains)
            for name, grid in (("before", one.before), ("after", one.after), ("ideal", one.ideal))
        },
        "others": {name: list(both) for name, both in outcome.others.items()},
        "figures": one.figures,
    }
