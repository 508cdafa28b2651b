"""`nsu.evaluate`, `nsu.sweep`, `nsu.audit`: what the commands do, as objects that can be shown."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from nullspace_unlearn.audit import door
from nullspace_unlearn.audit.question import COLUMNS
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.find import open_source
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.evaluate.alone import measure_alone
from nullspace_unlearn.evaluate.compare import EVERYWHERE, Comparison
from nullspace_unlearn.evaluate.requests import words_of
from nullspace_unlearn.evaluate.sweep import Sweep
from nullspace_unlearn.evaluate.verdict import sentence, table
from nullspace_unlearn.features import embed
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import resolved
from nullspace_unlearn.report.audit_plot import audit_plot
from nullspace_unlearn.report.pareto import pareto_plot
from nullspace_unlearn.report.plots import grid_heatmap
from nullspace_unlearn.report.sweep import write_sweep

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Shown:
    """What was measured, as a table and a picture.

    Attributes:
        measured: What the rows are of, with everything else it holds.
        title: What was found, in a line.
        rows: The table, a mapping a row with the same keys in each.
        drawn: Writes the picture to a new file.
    """

    measured: Any
    title: str
    rows: tuple[Mapping[str, Any], ...]
    drawn: Callable[[Path], None]

    def plot(self, path: str | Path | None = None) -> Image.Image | None:
        """The picture: written to a file, or given to a notebook, which shows it.

        Args:
            path: The file to write, a .png, .svg or .pdf.

        Returns:
            The picture, where no path is given.

        Raises:
            ValueError: If matplotlib is not installed, or the ending is another.
            OutputExists: If there is such a file.
        """
        if path is not None:
            self.drawn(Path(path))
            return None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plot.png"
            self.drawn(file)
            with Image.open(file) as picture:
                picture.load()
                return picture

    def to_pandas(self) -> DataFrame:
        """The table.

        Raises:
            ValueError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ValueError(
                "tables need pandas: pip install 'nullspace-unlearn[report]'"
            ) from None
        return pandas.DataFrame(list(self.rows))

    def to_latex(self) -> str:
        """The table as LaTeX, its text escaped.

        Raises:
            ValueError: If pandas or jinja2 is not installed.
        """
        return str(
            self.to_pandas().style.hide(axis="index").format(escape="latex").to_latex(hrules=True)
        )

    def _repr_html_(self) -> str | None:
        """What a notebook shows; None, so the plain words, where pandas is absent."""
        from html import escape

        try:
            shown = self.to_pandas().to_html(index=False, escape=True, float_format="{:.3f}".format)
        except ValueError:
            return None
        return f"<p>{escape(self.title)}</p>{shown}"

    def __repr__(self) -> str:
        return f"{self.title} ({len(self.rows)} rows)"


def evaluate(
    model: Clip,
    data: str | Path | Source,
    *,
    against: Clip | None = None,
    templates: Sequence[str] | None = None,
    quiet: bool = False,
) -> Shown:
    """Measure a model on images, class by domain.

    Args:
        model: The model, edited or not.
        data: What `nsu evaluate --data` takes, or a source.
        against: The untouched model, to say what is left of what an edited one has forgotten.
        templates: Class templates; absent: as `measure_alone` has them.
        quiet: Whether to leave out progress bars.

    Returns:
        `measured` an `Alone`; with `against`, a row is a figure and the picture is the grid before
        and after; without, a row is a cell.

    Raises:
        ValueError: As `open_source`, `embed` and `measure_alone`.
    """
    source = data if isinstance(data, Source) else open_source(data)
    models = (model,) if against is None else (model, against)
    features, *untouched = embed.embed_each(models, source, quiet=quiet)
    beside = None if against is None else (against, untouched[0])
    found = measure_alone(model, features, templates, against=beside)
    if found.comparison is not None:
        return of_comparison(found.comparison, found)
    classes = found.features.class_names
    domains = found.features.domain_names or EVERYWHERE
    rows = tuple(
        {
            "class": name,
            "domain": domain,
            "images": int(found.grid.count[c, d]),
            "accuracy": float(found.grid.accuracy[c, d]) if found.grid.count[c, d] else None,
        }
        for c, name in enumerate(classes)
        for d, domain in enumerate(domains)
    )
    said = f"Accuracy of {len(found.features)} images in {len(classes)} classes"

    def draw(path: Path) -> None:
        grid_heatmap(found.grid, found.grid, found.mask, classes, domains, path)

    return Shown(found, said, rows, draw)


def of_comparison(found: Comparison, measured: Any = None) -> Shown:
    """A model beside the untouched one: its figures, and the grid before and after.

    Args:
        found: The comparison, such as `carry_out(...).measured`.
        measured: What it is a part of, to be kept with it.
    """

    def draw(path: Path) -> None:
        grid_heatmap(found.before, found.after, found.mask, found.classes, found.domains, path)

    return Shown(measured or found, sentence(found), tuple(table(found)), draw)


def sweep(
    requests: Sequence[Forget],
    model: Clip | None,
    data: str | Path | Source,
    *,
    methods: Sequence[str],
    strengths: Sequence[float] = (1.0,),
    ranks: Sequence[int | None] = (None,),
    numbers: Mapping[str, Sequence[float]] | None = None,
    output: str | Path | None = None,
    quiet: bool = False,
) -> Shown:
    """Measure every request by every method at every strength, rank and number.

    Args:
        requests: What to forget.
        model: The model; None where features bring their text.
        data: What `nsu sweep --data` takes, or a source.
        methods: Names of erasers.
        strengths: As for `Sweep`, and so `ranks` and `numbers`.
        ranks: Highest ranks; None leaves an edit as derived.
        numbers: Name of a number -> its values.
        output: Folder to write as `nsu sweep` does; absent: none is.
        quiet: Whether to leave out progress bars.

    Returns:
        `measured` the `Swept`; a row is a setting, over the requests of a kind; the picture is the
        plane left x cost.

    Raises:
        ValueError: As `open_source`, `Sweep` and `write_sweep`.
    """
    source = data if isinstance(data, Source) else open_source(data)
    words = words_of(model, source)
    asked = Sweep(
        tuple(resolved(request, words) for request in requests),
        tuple(methods),
        tuple(strengths),
        tuple(ranks),
        {name: tuple(values) for name, values in (numbers or {}).items()},
    )
    features = source.features if model is None else embed.embed(model, source, quiet=quiet)
    if features is None:
        raise ValueError("without a model, data must be features that bring their text")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(output or Path(folder) / "sweep")
        found = write_sweep(asked, model, features, words, target, quiet=quiet)
    rows = tuple(
        {
            "kind": kind.kind,
            **{name: value for name, value in asdict(setting).items() if name != "means"},
            **(setting.means or {}),
        }
        for kind in found.kinds
        for setting in kind.settings
    )
    said = f"{len(asked.requests)} requests on {found.images} images"
    return Shown(found, said, rows, lambda path: pareto_plot(found.kinds, path))


@wraps(door.audit, assigned=())
def audit(*arguments: Any, **choices: Any) -> Shown:
    """Find out what an edited model still tells of what it was made to forget.

    Args:
        *arguments: As for `audit.door.audit`.
        **choices: Likewise.

    Returns:
        `measured` an `Audit`; a row is a figure of an answer, with its controls.

    Raises:
        ValueError: As `audit.door.audit`.
    """
    found = door.audit(*arguments, **choices)
    rows = tuple(
        {
            "question": question.title,
            "verdict": answer.verdict,
            "figure": finding.title,
            **{model: finding.values.get(model) for model in COLUMNS},
            "images": finding.images,
        }
        for question, answer in found.answers
        for finding in answer.findings
    )
    return Shown(
        found, f"Audit: {found.verdict}", rows, lambda path: audit_plot(found.answers, path)
    )
