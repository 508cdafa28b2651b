"""`nsu sweep`: measure any grid of requests, methods, strengths, ranks and numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nullspace_unlearn.cli import completion, options
from nullspace_unlearn.cli.data import DataOptions, data_options
from nullspace_unlearn.cli.options import ModelOptions, pairs
from nullspace_unlearn.cli.request import CellOptions, cell_options

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.evaluate.sweep import Sweep
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.report.pareto import Kind, Means, Setting

_MOST_SHOWN = 12
_SHOWN = ("left", "over", "cost", "worst_kept", "kept_search", "balance", "named_all", "found")

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
    shell_complete=completion.models,
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
@options.which_model
def sweep(
    which: ModelOptions,
    cells: CellOptions,
    requests: str | None,
    grid: GridOptions,
    data: DataOptions,
    output: str,
    overwrite: bool,
    cache: str | None,
    no_cache: bool,
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
    from nullspace_unlearn.evaluate.requests import shown, words_of
    from nullspace_unlearn.plans import resolved
    from nullspace_unlearn.report.sweep import check_replaceable, write_sweep

    target, silent = Path(output), quiet or as_json
    options.claim(overwrite, target)
    check_replaceable(target)
    found = _found(which, cells, data, quiet)
    asked = _asked(cells, requests, found, data.seed)
    grid.sweep(asked)  # which refuses what is wrong before a model is loaded

    options.use_text_cache(cache, no_cache)
    started = time.perf_counter()
    clip = _model(which, found)
    words = words_of(clip, found, cells.domain_words(), cells.template)
    known = [resolved(one, words) for one in asked] if requests else shown(asked, words, found)
    made = grid.sweep(known)
    features = found.features if clip is None else data.embed([clip], found, silent)[0]
    assert features is not None  # or there is a model
    swept = write_sweep(made, clip, features, words, target, overwrite=overwrite, quiet=silent)
    seconds = time.perf_counter() - started
    result = {**swept.to_json(), "seconds": seconds, "output": output}
    if as_json:
        options.print_json(result)
    elif not quiet:
        click.echo(_report(result, swept.kinds))


def _found(which: ModelOptions, cells: CellOptions, data: DataOptions, quiet: bool) -> Source:
    """The data, whose classes requests name."""
    found = data.find(cells.domain_words(), which.name, quiet)
    if found is None:
        raise ValueError("give --data: a folder, a feature file, or nsu-mini")
    if not found.classes:
        raise ValueError(
            "the feature file has no class names, so no request can name a class: give one with "
            "class_names, or with text_features"
        )
    return found


def _asked(cells: CellOptions, file: str | None, found: Source, seed: int) -> list[Forget]:
    """The requests of --class and --domain, one or one of each, or those of a file."""
    from nullspace_unlearn.evaluate.requests import each, read_requests

    if file is None:
        some = each(cells.class_, cells.domain, found, seed)
        return [replace(cells, class_=names, domain=where).forget() for names, where in some]
    if cells.class_ or cells.domain or cells.all_classes:
        raise ValueError("--requests says what to forget: leave out --class, --domain, or it")
    return read_requests(file)


def _model(which: ModelOptions, found: Source) -> Clip | None:
    """The model; none where features bring their text and none is named."""
    if which.model is not None or found.features is None:
        return which.load()
    if which.pretrained is not None:
        raise ValueError("--pretrained goes with --model, and none is given")
    if found.features.text is None:
        raise ValueError("the feature file has no text features: give the --model it is of")
    return None


def _numbers(option: str, text: str, kind: Callable[[str], _Number]) -> tuple[_Number, ...]:
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes numbers parted by commas, got {text!r}") from None


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
