"""`nsu sweep`: measure any grid of requests, methods, strengths, ranks and numbers."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nullspace_unlearn import __version__
from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions, data_options
from nullspace_unlearn.cli.options import pairs
from nullspace_unlearn.cli.request import CellOptions, cell_options

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.evaluate.sweep import Sweep
    from nullspace_unlearn.fingerprint import Fingerprint
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.report.pareto import Kind, Means, Setting
    from nullspace_unlearn.report.tidy import Journal
    from nullspace_unlearn.words import Words

_EACH = re.compile(r"each(?::(.*))?")
_TABLE, _RECIPE = "results.csv", "recipe.yaml"
_MOST_SHOWN = 12
_SHOWN = ("left", "over", "cost", "worst_kept", "balance", "named_all", "found")

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class GridOptions:
    """The axes of a sweep, as given."""

    method: tuple[str, ...]
    strength: str
    rank: str
    ridge: str | None
    set: tuple[str, ...]

    def sweep(self, requests: Sequence[Forget]) -> Sweep:
        """The grid over some requests.

        Raises:
            ValueError: If an axis is malformed or out of range, or a method takes no request.
        """
        from nullspace_unlearn.evaluate.sweep import Sweep

        return Sweep(
            requests=tuple(requests),
            methods=self.method,
            strengths=_numbers("--strength", self.strength, float),
            ranks=tuple(
                None if text.strip() == "all" else _numbers("--rank", text, int)[0]
                for text in self.rank.split(",")
            ),
            numbers=self._axes(),
        )

    def _axes(self) -> dict[str, tuple[float, ...]]:
        axes = pairs("--set", self.set)
        if self.ridge is not None:
            if "ridge" in axes:
                raise ValueError("--ridge and --set ridge=... say the same: give one")
            axes["ridge"] = self.ridge
        return {name: _numbers(f"--set {name}=", text, float) for name, text in axes.items()}


grid_options = options.gathered(
    "grid",
    GridOptions,
    click.option(
        "--method",
        multiple=True,
        required=True,
        cls=options.MethodOption,
        able="swept",
        told="several are swept.",
    ),
    click.option(
        "--strength",
        default="1",
        show_default=True,
        metavar="A,B,...",
        help="1 is the edit as derived, at most 2.",
    ),
    click.option(
        "--rank",
        default="all",
        show_default=True,
        metavar="A,B,...",
        help="Cut edits to so many directions; all leaves them as derived.",
    ),
    click.option(
        "--ridge",
        metavar="A,B,...",
        help="Relative ridge, of the methods that have one; absent: each method's own.",
    ),
    click.option(
        "--set",
        multiple=True,
        metavar="NAME=A,B,...",
        help="Any other number of the methods that have it (docs/sweeps.md).",
    ),
)


@click.command()
@click.option(
    "--model",
    help="As for erase; absent: nsu-mini, or none where --data is a file with text features.",
)
@click.option("--pretrained", help="Tag or weights file, for an open_clip name.")
@cell_options
@click.option(
    "--requests",
    metavar="FILE",
    help="YAML or JSON: a list of requests, each with classes, domains, or both.",
)
@grid_options
@data_options
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@options.cache_options
@options.device_options
@options.output_options
def sweep(
    model: str | None,
    pretrained: str | None,
    cells: CellOptions,
    requests: str | None,
    grid: GridOptions,
    data: DataOptions,
    output: str,
    overwrite: bool,
    cache: str | None,
    no_cache: bool,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure every request by every method at every strength, rank and number.

    \b
    nsu sweep --class car --method hull --strength 0.5,1 --output out
    nsu sweep --class each --domain each --method gated --ridge 0.1,0.3 --output out
    nsu sweep --data features.npz --class each:100 --method hull --method ccup --output out

    --class each and --domain each make a request of every class and domain that there are images
    of, each:N of N of them drawn by --seed. Images are embedded once and no edited model is made.
    Writes a table with one row for each request and setting, and a plot of what was forgotten
    against what was kept. Rows are kept in DIR.run until all are done: the same command again goes
    on from there.
    """  # noqa: D301
    target = Path(output)
    _check_replaceable(target, overwrite)
    found = data.find(cells.domain_words(), options.BUNDLED if model is None else model, quiet)
    if found is None:
        raise ValueError("give --data: a folder, a feature file, or nsu-mini")
    names, keys = found.classes, found.words
    if not names:
        raise ValueError(
            "the feature file has no class names, so no request can name a class: give one with "
            "class_names, or with text_features"
        )
    present = found.counts > 0
    asked = (
        _expanded(cells, names, tuple(keys), present, data.seed)
        if requests is None
        else _listed(requests, cells)
    )
    grid.sweep(asked)  # which refuses what is wrong before a model is loaded

    from nullspace_unlearn.evaluate.compare import EVERYWHERE, classifier
    from nullspace_unlearn.evaluate.sweep import COLUMNS, Run
    from nullspace_unlearn.fingerprint import Fingerprint, code_of, machine
    from nullspace_unlearn.linalg import unit
    from nullspace_unlearn.plans import Texts, resolved, texts_of
    from nullspace_unlearn.report.pareto import summarise

    options.use_text_cache(cache, no_cache)
    started = time.perf_counter()
    silent = quiet or as_json
    clip = None
    if model is not None or found.features is None:
        clip = options.load_model(model or options.BUNDLED, pretrained, device, precision)
    elif pretrained is not None:
        raise ValueError("--pretrained goes with --model, and none is given")
    elif found.features.text is None:
        raise ValueError("the feature file has no text features: give the --model it is of")
    words = _words(clip, cells, found)
    known = [resolved(request, words) for request in asked]
    if requests is None and len(known) > 1:  # of each class in each domain, those there are
        columns = tuple(keys) or EVERYWHERE
        known = [one for one in known if (one.mask(names, columns) & present).any()]
    made = grid.sweep(known)
    if clip is None:
        features = found.features
        assert features is not None and features.text is not None  # checked above
        texts = Texts(names, (), unit(features.text.double()))
        named_by = features.text
    else:
        features = data.embed(clip, found, silent)
        texts = texts_of(clip, names, made.requests, words)
        named_by = classifier(clip, features, words.class_templates)
    run = Run(made, features, named_by, texts)
    made_from = Fingerprint(
        {
            "model": None if clip is None else clip.fingerprint,
            "features": features.fingerprint,
            "words": None if clip is None else words.to_json(),
            "sweep": made.to_json(),
            "machine": machine("cpu" if clip is None else clip.device),
            "code": code_of("evaluate.sweep"),
        }
    )
    recipe = {
        "version": __version__,
        "model": None if clip is None else clip.source.name,
        "data": features.provenance.get("images") or features.provenance.get("file"),
        "words": None if clip is None else words.to_json(),
        **made.to_json(),
        "made_from": dict(made_from.only("model", "features", "machine", "code").facts),
    }
    with _journal(target, made_from, overwrite) as journal:
        before = journal.chunks
        for rows in run.measure(skip=before, quiet=silent):
            journal.append([_plain(row) for row in rows])
        kinds = summarise(journal.rows())
        files = _write(target, overwrite, journal, recipe, kinds)
        journal.path.unlink()
    result = {
        "requests": len(made.requests),
        "rows": len(made),
        "images": len(features),
        "resumed": before > 0,
        "seconds": time.perf_counter() - started,
        "columns": list(COLUMNS),
        "kinds": [kind.to_json() for kind in kinds],
        "output": str(target),
        "files": files,
    }
    if as_json:
        options.print_json(result)
    elif not quiet:
        click.echo(_report(result, kinds))


def _numbers(option: str, text: str, kind: Callable[[str], _Number]) -> tuple[_Number, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers parted by commas, got {text!r}") from None


def _expanded(
    cells: CellOptions,
    names: tuple[str, ...],
    keys: tuple[str, ...],
    present: Bool[Tensor, "classes domains"],
    seed: int,
) -> list[Forget]:
    """The requests of --class and --domain: one, or one of each."""
    classes = _each("--class", cells.class_, names, present.any(1).tolist(), seed)
    domains = _each("--domain", cells.domain, keys, present.any(0).tolist(), seed)
    return [replace(cells, class_=c, domain=d).forget() for c in classes for d in domains]


def _each(
    option: str, given: tuple[str, ...], names: tuple[str, ...], seen: list[bool], seed: int
) -> list[tuple[str, ...]]:
    """What one request names, or what each of several does."""
    import torch

    matches = [_EACH.fullmatch(name) for name in given]
    if not any(matches):
        return [given]
    if len(given) > 1:
        raise ValueError(f"{option} each stands for every one: leave out the other {option}")
    # Two classes of one name go together; without domains there is a column of no name.
    pool = list(dict.fromkeys(name for name, here in zip(names, seen, strict=False) if here))
    if not pool:
        raise ValueError(f"{option} each: the data names none")
    match = matches[0]
    if match is None or match[1] is None:
        return [(name,) for name in pool]
    number = int(match[1]) if match[1].isdecimal() else 0
    if not 1 <= number <= len(pool):
        raise ValueError(f"{option} each:N takes N from 1 to {len(pool)}, got {match[1]!r}")
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:number]
    return [(pool[i],) for i in drawn.sort().values.tolist()]


def _listed(file: str, cells: CellOptions) -> list[Forget]:
    """The requests of a --requests file."""
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.strict import plain_yaml

    if cells.class_ or cells.domain or cells.all_classes:
        raise ValueError("--requests says what to forget: leave out --class, --domain, or it")
    listed = plain_yaml(file)
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"requests {file!r} must be a list of requests with classes or domains")
    requests = []
    for number, one in enumerate(listed, 1):
        if not isinstance(one, dict) or not set(one) <= {"classes", "domains"}:
            raise ValueError(
                f"request {number} of {file!r} must have classes, domains or both, and nothing else"
            )
        for what, value in one.items():
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ValueError(f"{what} of request {number} of {file!r} must be a list of names")
        try:
            requests.append(Forget(**one))
        except ValueError as error:
            raise ValueError(f"request {number} of {file!r}: {error}") from None
    return requests


def _words(clip: Clip | None, cells: CellOptions, found: Source) -> Words:
    """Names as the data give them, and how the model's folder and the options say them."""
    from nullspace_unlearn.words import Words

    own = (clip.words if clip else None) or Words()
    given, keys = cells.domain_words(), found.words
    unknown = [key for key in given if key not in keys]
    if unknown:
        raise ValueError(
            f"--domain-word names {', '.join(map(repr, unknown))}, which is not among the data's "
            f"domains: {', '.join(keys) or 'none'}"
        )
    return Words(
        classes=tuple(dict.fromkeys(found.classes)),
        domains={key: given.get(key, own.domains.get(key, word)) for key, word in keys.items()},
        class_templates=cells.template or found.templates or own.class_templates,
        cell_templates=own.cell_templates,
        aliases=own.aliases,
    )


def _check_replaceable(target: Path, overwrite: bool) -> None:
    options.claim(overwrite, target)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not all((target / name).is_file() for name in (_TABLE, _RECIPE)):
        raise ValueError(f"output {str(target)!r} is no folder of a sweep, so it is not replaced")


@contextlib.contextmanager
def _journal(target: Path, made_from: Fingerprint, overwrite: bool) -> Iterator[Journal]:
    """The rows so far; one without any is not left behind."""
    from nullspace_unlearn.evaluate.sweep import COLUMNS
    from nullspace_unlearn.fingerprint import OtherRun
    from nullspace_unlearn.report.tidy import Journal

    path = target.with_name(target.name + ".run")
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


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as a journal takes it, refusals on one line."""
    why = row["refused"]
    return {**row, "refused": why and " ".join(why.split())}


def _write(
    target: Path,
    overwrite: bool,
    journal: Journal,
    recipe: Mapping[str, Any],
    kinds: Sequence[Kind],
) -> list[str]:
    """The output folder; what it takes an absent library to write is left out, with a warning."""
    from nullspace_unlearn.clip.folder import plain_texts
    from nullspace_unlearn.evaluate.sweep import COLUMNS
    from nullspace_unlearn.files import new_folder
    from nullspace_unlearn.report.pareto import named_plot, pareto_plot
    from nullspace_unlearn.report.picture import check_picture
    from nullspace_unlearn.report.tidy import check_parquet, write_csv, write_parquet

    with new_folder(target, overwrite) as folder:
        write_csv(journal.rows(), tuple(COLUMNS), folder / _TABLE)
        (folder / _RECIPE).write_text(plain_texts(recipe, None)[_RECIPE], encoding="utf-8")
        if _available(check_parquet):
            write_parquet(journal.rows(), COLUMNS, folder / "results.parquet")
        picture = folder / "pareto.png"
        if _available(check_picture, picture):
            pareto_plot(kinds, picture)
            named_plot(kinds, folder / "named.png")
        return sorted(file.name for file in folder.iterdir())


def _available(check: Callable[..., None], *given: Any) -> bool:
    """Whether a check passes; where it does not, a warning says why."""
    try:
        check(*given)
    except ValueError as error:
        warnings.warn(str(error), stacklevel=2)
        return False
    return True


def _report(result: Mapping[str, Any], kinds: Sequence[Kind]) -> str:
    from nullspace_unlearn.evaluate.figures import FIGURES

    lines = [
        f"Measured {result['rows']} rows, {result['requests']} requests on {result['images']} "
        f"images, in {result['seconds']:.1f} s."
    ]
    for kind in kinds:
        lines += ["", f"{kind.kind:46}" + "".join(f"{FIGURES[n].title:>11}" for n in _SHOWN)]
        lines += [_line("untouched", kind.untouched), _line("ideal", kind.ideal)]
        # Ranks that make no difference share a line.
        alike: dict[Any, list[Setting]] = {}
        for o in sorted(kind.settings, key=lambda o: -((o.means or {}).get("balance") or -1)):
            means = tuple((o.means or {}).values())
            alike.setdefault((o.method, o.strength, o.numbers, means), []).append(o)
        for some in list(alike.values())[:_MOST_SHOWN]:
            first = some[0]
            ranks = ",".join("all" if o.rank is None else str(o.rank) for o in some)
            numbers = "" if first.numbers is None else f", {first.numbers}"
            name = f"{first.method}, strength {first.strength:g}, rank {ranks}{numbers}"
            refused = f"  ({first.refused} refused)" if first.refused else ""
            lines.append(_line(name + " *" * first.on_front, first.means) + refused)
        if len(alike) > _MOST_SHOWN:
            lines.append(f"... and {len(alike) - _MOST_SHOWN} more in the table")
    lines += [
        "",
        "Means over requests, best balance first; * none has less left at the same cost.",
        "The ideal: names struck off the one list, so a search finds all of it.",
        f"Wrote {result['output']}: {', '.join(result['files'])}",
    ]
    return "\n".join(lines)


def _line(name: str, means: Means | None) -> str:
    if means is None:
        return f"{name:46}{'-':>10}"
    from nullspace_unlearn.evaluate.figures import FIGURES

    return f"{name:46}" + "".join(f"{FIGURES[n].written(means[n]):>11}" for n in _SHOWN)
