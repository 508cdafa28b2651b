"""`Benchmark`: a recipe with its data found and its trials listed, run and tabled in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nullspace_unlearn.bench import runner
from nullspace_unlearn.bench.datasets import Pool, find_pools
from nullspace_unlearn.bench.recipe import Model, Recipe, find_recipe, read_recipe
from nullspace_unlearn.bench.report import write_report
from nullspace_unlearn.bench.runner import Done, Trial
from nullspace_unlearn.clip import Clip


@dataclass(frozen=True, eq=False)
class Tabled:
    """What a benchmark came to.

    Attributes:
        markdown: The tables for a reader.
        tables: The same as plain values.
        done: Results and failures.
    """

    markdown: str
    tables: dict[str, Any]
    done: Done


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A recipe, its data and its trials, before anything is computed. Make one with `find`.

    Attributes:
        recipe: The recipe.
        text: Its file, kept beside the results.
        model_name: The model as `load` takes it; None for a feature file.
        pools: The data.
        trials: Every method on every request with every draw.
    """

    recipe: Recipe
    text: str
    model_name: str | None
    pools: tuple[Pool, ...]
    trials: tuple[Trial, ...]

    @classmethod
    def find(cls, given: str, root: str | Path = ".", model: Model | None = None) -> Benchmark:
        """Read a recipe and look at its data.

        Args:
            given: A recipe's file, or the name of one that comes along.
            root: What its paths are below.
            model: A model in place of the recipe's.

        Returns:
            The benchmark.

        Raises:
            ValueError: If there is no such recipe, it is malformed, its data are not there, or it
                measures a feature file and a model is given.
        """
        file = find_recipe(given)
        recipe = read_recipe(file)
        name = None if recipe.model is None else runner.model_name(recipe.model, Path(root))
        if model is not None:
            if recipe.model is None:
                raise ValueError(
                    f"recipe {recipe.name!r} measures a feature file: leave out --model"
                )
            name, templates = model.name, recipe.model.templates
            recipe = replace(recipe, model=replace(model, templates=templates))
        pools = find_pools(recipe, Path(root))
        trials = tuple(runner.trials_of(recipe, pools))
        return cls(recipe, file.read_text(encoding="utf-8"), name, pools, trials)

    def chosen(self, only: Sequence[str] = ()) -> list[Trial]:
        """The trials of some rows of the table.

        Args:
            only: Labels of the rows; empty: all.

        Raises:
            ValueError: If there is no such row.
        """
        labels = [entry.label for entry in self.recipe.methods]
        if unknown := [label for label in only if label not in labels]:
            raise ValueError(
                f"--only names {unknown[0]!r}, which is no row of {self.recipe.name}: "
                f"{'; '.join(labels)}"
            )
        return [trial for trial in self.trials if not only or trial.entry.label in only]

    def run(
        self,
        output: Path,
        clip: Clip | None,
        *,
        only: Sequence[str] = (),
        overwrite: bool = False,
        quiet: bool = False,
        note: Callable[[str], None] = lambda line: None,
    ) -> Tabled:
        """Run what has no result yet, and write tables and pictures.

        Args:
            output: The folder of the results.
            clip: The model; None for a feature file.
            only: Labels of the methods to run; empty: all.
            overwrite: Whether to begin anew.
            quiet: Whether to leave out progress bars.
            note: Called with a line about each trial that failed, and what is made again.

        Returns:
            The tables, over all results that are there.

        Raises:
            OutputExists: If the folder holds something else; a ValueError.
            RuntimeError: If every trial failed.
        """
        self.chosen(only)
        runner.claim(output, self.recipe, self.text, overwrite)
        given = self.recipe, self.pools, clip, self.trials, output
        done = runner.run(*given, only=only, quiet=quiet, note=note)
        if not done.runs:
            raise RuntimeError(
                f"all {len(done.failed)} trials failed; the first: {done.failed[0][1]}"
            )
        return Tabled(*write_report(self.recipe, done.runs, output, len(done.failed)), done)
