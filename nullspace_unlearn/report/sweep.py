"""`write_sweep`: a sweep measured, kept as it goes so that it can go on, its table and plots."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.folder import plain_texts
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.evaluate.sweep import COLUMNS, Row, Run, Sweep
from nullspace_unlearn.features import Features
from nullspace_unlearn.files import new_folder
from nullspace_unlearn.fingerprint import Fingerprint, OtherRun, code_of, machine
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.plans import Texts, texts_of
from nullspace_unlearn.report.pareto import Kind, named_plot, pareto_plot, summarise
from nullspace_unlearn.report.picture import check_picture
from nullspace_unlearn.report.tidy import Journal, check_parquet, write_csv, write_parquet
from nullspace_unlearn.version import __version__
from nullspace_unlearn.words import Words

_TABLE, _RECIPE = "results.csv", "recipe.yaml"
SUMMARY = "summary.json"
"""Name of the file that holds what each setting did over the requests of a kind."""


@dataclass(frozen=True, eq=False)
class Swept:
    """A sweep that was measured and written.

    Attributes:
        sweep: The grid.
        images: How many images it was measured on.
        resumed: Whether some of its rows had been measured before.
        kinds: What each setting did, over the requests of a kind.
        files: Names of the files of the folder.
    """

    sweep: Sweep
    images: int
    resumed: bool
    kinds: tuple[Kind, ...]
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the rows."""
        return {
            "requests": len(self.sweep.requests),
            "rows": len(self.sweep),
            "images": self.images,
            "resumed": self.resumed,
            "columns": list(COLUMNS),
            "kinds": [kind.to_json() for kind in self.kinds],
            "files": list(self.files),
        }


def write_sweep(
    sweep: Sweep,
    clip: Clip | None,
    features: Features,
    words: Words,
    output: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> Swept:
    """Measure every request at every setting and write a folder.

    Rows are kept in OUTPUT.run until all are done: the same call again goes on from there.

    Args:
        sweep: The grid, its requests resolved (`plans.resolved`).
        clip: The model; None where features bring their text.
        features: Embeddings of the untouched model.
        words: Classes, domains and templates.
        output: The folder: a table with one row for each request and setting, the recipe, plots.
        overwrite: Whether a folder or another run's rows may be replaced.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        What was measured. A warning names what an absent library leaves out.

    Raises:
        ValueError: As `Run`; or if the rows that are kept are of another run.
    """
    if clip is None:
        if features.text is None:
            raise ValueError("the feature file has no text features: give the --model it is of")
        texts = Texts(features.class_names, (), unit(features.text.double()))
        run = Run(sweep, features, features.text, texts)
    else:
        texts = texts_of(clip, features.class_names, sweep.requests, words)
        run = Run(sweep, features, classifier(clip, features, words.class_templates), texts)
    said_words = None if clip is None else words.to_json()
    made_from = Fingerprint(
        {
            "model": None if clip is None else clip.fingerprint,
            "features": features.fingerprint,
            "words": said_words,
            "sweep": sweep.to_json(),
            "machine": machine("cpu" if clip is None else clip.device),
            "code": code_of("evaluate.sweep"),
        }
    )
    recipe = {
        "version": __version__,
        "model": None if clip is None else clip.source.name,
        "data": features.provenance.get("images") or features.provenance.get("file"),
        "words": said_words,
        **sweep.to_json(),
        "made_from": dict(made_from.only("model", "features", "machine", "code").facts),
    }
    with _journal(output, made_from, overwrite) as journal:
        before = journal.chunks
        for rows in run.measure(skip=before, quiet=quiet):
            journal.append([_plain(row) for row in rows])
        kinds = summarise(journal.rows())
        files = _write(output, overwrite, journal, recipe, kinds, len(features))
        journal.path.unlink()
    return Swept(sweep, len(features), before > 0, kinds, files)


def check_replaceable(output: Path) -> None:
    """Refuse to replace a folder that no sweep wrote.

    Args:
        output: The folder that is to be written.

    Raises:
        ValueError: If it holds something else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not all((output / name).is_file() for name in (_TABLE, _RECIPE)):
        raise ValueError(f"output {str(output)!r} is no folder of a sweep, so it is not replaced")


@contextlib.contextmanager
def _journal(output: Path, made_from: Fingerprint, overwrite: bool) -> Iterator[Journal]:
    """The rows so far; one without any is not left behind."""
    path = output.with_name(output.name + ".run")
    try:
        journal = Journal(path, made_from, tuple(COLUMNS))
    except OtherRun as error:
        if not overwrite or not path.is_file():
            raise ValueError(f"{error}; name another --output, or pass --overwrite") from None
        path.unlink()
        journal = Journal(path, made_from, tuple(COLUMNS))
    try:
        yield journal
    finally:
        if not journal.chunks:
            path.unlink(missing_ok=True)


def _plain(row: Row) -> Row:
    """The row as a journal takes it, refusals on one line."""
    why = row["refused"]
    return {**row, "refused": why and " ".join(why.split())}


def _write(
    output: Path,
    overwrite: bool,
    journal: Journal,
    recipe: Mapping[str, Any],
    kinds: tuple[Kind, ...],
    images: int,
) -> tuple[str, ...]:
    """The output folder; what it takes an absent library to write is left out, with a warning."""
    with new_folder(output, overwrite) as folder:
        write_csv(journal.rows(), tuple(COLUMNS), folder / _TABLE)
        (folder / _RECIPE).write_text(plain_texts(recipe, None)[_RECIPE], encoding="utf-8")
        said = {"images": images, "kinds": [kind.to_json() for kind in kinds]}
        text = json.dumps(said, indent=1, allow_nan=False, ensure_ascii=False)
        (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
        if _available(check_parquet):
            write_parquet(journal.rows(), COLUMNS, folder / "results.parquet")
        picture = folder / "pareto.png"
        if _available(check_picture, picture):
            pareto_plot(kinds, picture)
            named_plot(kinds, folder / "named.png")
        return tuple(sorted(file.name for file in folder.iterdir()))


def _available(check: Callable[..., None], *given: Any) -> bool:
    """Whether a check passes; where it does not, a warning says why."""
    try:
        check(*given)
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return False
    return True
