"""Figures over requests and draws, against numpy; and that nothing in a name can break a table."""

from __future__ import annotations

import csv
import io
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullspace_unlearn.bench import table
from nullspace_unlearn.bench.recipe import METRICS, Bundled, Entry, Model, Recipe, Request
from nullspace_unlearn.bench.report import write_report
from nullspace_unlearn.evaluate.figures import FIGURES, grid_figures
from nullspace_unlearn.evaluate.zeroshot import Grid, grid_to_json
from nullspace_unlearn.report import bench_plots

CLASSES, DOMAINS = ("car|truck", "dog", "<b>"), ("photo", "sketch")
COUNT = torch.tensor([[4, 5], [6, 7], [8, 9]])


def grid(random: np.random.Generator) -> Grid:
    return Grid(torch.from_numpy(random.random((3, 2))), COUNT)


def run(label: str, forgotten: int, seed: int, others: dict[str, list[float]] | None = None,
        right: bool = True) -> dict[str, Any]:  # fmt: skip
    """One class in sketches forgotten, with random accuracies."""
    before = grid(np.random.default_rng(forgotten))
    mask = torch.zeros(3, 2, dtype=torch.bool)
    mask[forgotten, 1] = True
    if not right:
        before = Grid(before.accuracy.masked_fill(mask, 0), COUNT)
    grids = {
        "before": before,
        "after": grid(np.random.default_rng([forgotten, seed, len(label)])),
        "ideal": Grid(before.accuracy.masked_fill(mask, 0), COUNT),
    }
    request = {"classes": [CLASSES[forgotten]], "domains": ["sketch"]}
    return {
        "label": label, "kind": "cell", "what": f"{CLASSES[forgotten]} in sketch", "dataset": "",
        "request": request, "seed": seed, "seconds": 1.5, "forgotten": mask.tolist(),
        "others": others or {},
        "figures": {name: {"left": 0.25} for name in grids},
        "grids": {name: grid_to_json(one, CLASSES, DOMAINS) for name, one in grids.items()},
    }  # fmt: skip


def recipe(*labels: str, metrics: Any = METRICS) -> Recipe:
    methods = tuple(Entry("gated", label=label) for label in labels)
    return Recipe("mine", Bundled(), (Request("cell"),), methods, Model("nsu-mini"),
                  about="A test.", metrics=metrics)  # fmt: skip


RUNS = [run("a", c, s) for c in range(3) for s in (0, 1)] + [run("bb", 1, 0)]


def test_mean_spread_and_worst_are_those_of_all_runs() -> None:
    found = table.summary(recipe("a", "bb"), RUNS)["cell"]["all"]
    assert list(found) == ["untouched", "ideal", "a", "bb"]
    kept = []
    for one in RUNS[:6]:
        after = np.array(one["grids"]["after"]["accuracy"])
        kept.append(after[~np.array(one["forgotten"])].mean())
    row = found["a"]["kept"]
    assert (row.mean, row.std) == pytest.approx((np.mean(kept), np.std(kept, ddof=1)))
    assert (row.min, row.max, row.n) == (pytest.approx(min(kept)), pytest.approx(max(kept)), 6)
    assert found["untouched"]["kept"].n == 3  # each request once, however many draws
    assert found["bb"]["kept"].std == 0 and found["untouched"]["seconds"] is None


def test_requests_count_alike_however_many_draws_they_have() -> None:
    uneven = [run("a", 0, 0), run("a", 0, 1), run("a", 2, 0)]
    row = table.summary(recipe("a"), uneven)["cell"]["all"]["a"]["forgotten"]
    values = [one["grids"]["after"]["accuracy"][c][1] for c, one in zip((0, 0, 2), uneven,
                                                                       strict=True)]  # fmt: skip
    assert row.mean == pytest.approx(((values[0] + values[1]) / 2 + values[2]) / 2)
    assert row.mean != pytest.approx(np.mean(values))


def test_every_metric_follows_from_the_grids() -> None:
    one = run("a", 1, 0, others={"cars": [0.8, 0.6]})
    after, before = (np.array(one["grids"][w]["accuracy"]) for w in ("after", "before"))
    count, mask = COUNT.numpy(), np.array(one["forgotten"])
    told = table.scores(one, "after")
    assert list(told) and set(told) == set(FIGURES) and told["left"] == 0.25
    kept = after[~mask].mean()
    assert told["mem"] == pytest.approx(kept) and told["for"] == pytest.approx(1 - after[1, 1])
    assert told["h"] == pytest.approx(2 / (1 / kept + 1 / (1 - after[1, 1])))
    parts = [1 - after[1, 1], after[1, 0], after[[0, 2], 1].mean(), after[[0, 2], 0].mean()]
    assert told["h4"] == pytest.approx(4 / sum(1 / part for part in parts))
    rows = [after[0].mean(), after[1, 0], after[2].mean()]
    assert told["spread"] == pytest.approx(np.std(rows))

    def rest(accuracy: Any) -> float:
        return float((accuracy * count)[~mask].sum() / count[~mask].sum())

    terms = [after[1, 1] / before[1, 1], max(0, 1 - rest(after) / rest(before)), 1 - 0.6 / 0.8]
    assert told["kravets"] == pytest.approx(np.mean(terms))
    grids = [Grid(torch.from_numpy(one), COUNT) for one in (before, after)]
    said = grid_figures(grids[1], torch.from_numpy(mask), grids[0])
    assert told["subgroup"] == pytest.approx(said["subgroup"])
    untouched = table.scores(one, "before")
    assert untouched["kravets"] == pytest.approx(1 / 3) and untouched["seconds"] is None
    assert table.scores(one, "ideal")["kravets"] == 0


def test_a_score_that_cannot_be_told_is_left_out() -> None:
    found = table.summary(recipe("a"), [run("a", 0, 0, right=False)])
    assert found["cell"]["all"]["a"]["kravets"] is None
    assert found["cell"]["all"]["a"]["kept"] is not None  # control
    said = json.loads(table.dump(table.to_json(recipe("a"), found)))
    assert said["groups"]["cell"]["all"]["a"]["kravets"] is None


def test_what_goes_at_once_has_a_table_of_its_own() -> None:
    one, two = run("a", 0, 0), run("a", 1, 0)
    two["request"]["classes"] = list(CLASSES[:2])
    found = table.summary(recipe("a"), [one, two])
    assert list(found) == ["cell", "cell-2"]
    assert table.title_of("cell-2") == "Classes in one domain, 2 at once"
    assert set(found["cell-2"]["by"]) == set(CLASSES[:2])


def test_the_markdown_is_one_row_a_method_and_safe() -> None:
    found = table.summary(recipe("a", "bb"), RUNS)
    text = table.to_markdown(recipe("a", "bb", metrics=("kept", "spread")), found, failed=2)
    lines = text.splitlines()
    assert "| method | kept | spread ↓ | runs |" in lines
    assert "**2 trials failed and are missing here.**" in lines
    first = lines.index("| method | kept | spread ↓ | runs |")
    assert [line.split(" | ")[0] for line in lines[first + 2 : first + 6]] == [
        "| untouched", "| ideal", "| a", "| bb"]  # fmt: skip
    kept = found["cell"]["all"]["a"]["kept"]
    assert f"{kept.mean:.3f} ± {kept.std:.3f} ({kept.min:.3f})" in text
    spread = found["cell"]["all"]["a"]["spread"]
    assert f"({spread.max:.3f})" in text  # the worst of what is better low
    columns = {line.replace(r"\|", "").count("|") for line in lines if line.startswith("| ")}
    assert r"| car\|truck |" in text and columns == {5, 6}  # one more by name
    assert "| &lt;b> |" in text and "<b>" not in text
    without = table.to_markdown(recipe("a", "bb", metrics=("kept",)), found)
    assert "by what was forgotten" in text and "by what was forgotten" not in without


def test_the_csv_reads_back() -> None:
    found = table.summary(recipe("a", "bb"), RUNS)
    rows = list(csv.DictReader(io.StringIO(table.to_csv(found))))
    (row,) = [r for r in rows if (r["of"], r["method"], r["metric"]) == ("car|truck", "a", "h4")]
    expected = found["cell"]["by"]["car|truck"]["a"]["h4"]
    assert [float(row[k]) for k in ("mean", "std", "min", "max")] == [
        expected.mean, expected.std, expected.min, expected.max]  # fmt: skip
    assert row["group"] == "cell" and row["n"] == "2"


def test_no_name_is_a_formula_in_the_csv() -> None:
    found = table.summary(recipe("a", "bb"), RUNS)
    by = found["cell"]["by"]
    by["=1+1"] = by.pop("car|truck")
    names = {row["of"] for row in csv.DictReader(io.StringIO(table.to_csv(found)))}
    assert "'=1+1" in names and not any(name.startswith("=") for name in names)


def test_tables_and_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text, said = write_report(recipe("a", "bb"), RUNS, tmp_path)
    assert (tmp_path / "table.md").read_text() == text
    assert json.loads((tmp_path / "table.json").read_text()) == said
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"table.md", "table.csv", "table.json", "left-cell.png", "grid-cell.png"}


def test_the_page_of_a_benchmark_has_its_means(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from nullspace_unlearn.report.page import write_page

    said = write_report(recipe("a", "bb"), RUNS, tmp_path)[1]
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    write_page([tmp_path], tmp_path / "page.html", tmp_path / "tables")
    with (tmp_path / "tables" / "cell.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["untouched", "ideal", "a", "bb"]
    for label, row in rows.items():
        kept = said["groups"]["cell"]["all"][label]["kept"]
        assert (row["kept"], row["runs"]) == (str(kept["mean"]), str(kept["n"]))
    for which, gone in (("forgotten", True), ("kept", False)):
        with (tmp_path / "tables" / f"cell-a-{which}.csv").open(newline="") as file:
            cells = {(row["class"], row["domain"]): row for row in csv.DictReader(file)}
        assert len(cells) == 6
        for (c, name), (d, domain) in product(enumerate(CLASSES), enumerate(DOMAINS)):
            some = [one for one in RUNS if one["label"] == "a" and one["forgotten"][c][d] == gone]
            for when in ("before", "after"):
                told = cells[name, domain][when]
                mean = [one["grids"][when]["accuracy"][c][d] for one in some]
                assert told == "" if not some else float(told) == pytest.approx(np.mean(mean))
    page = (tmp_path / "page.html").read_text()
    assert "a: accuracy of each cell where it was to be forgotten" in page
    assert "A test." in page and "Classes in one domain" in page and said["titles"]["cell"] in page


def test_every_method_is_drawn_with_its_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [
        bench_plots.Point("untouched", 1.0, 0.0, bound=True),
        bench_plots.Point("a <b> $x", 0.8, 7.0, (0.7, 0.9), (5.0, 9.0), over=True),
    ]
    bench_plots.left_against_cost(points, "Cells", tmp_path / "p.svg")
    drawn = (tmp_path / "p.svg").read_text()
    for words in (
        "untouched", "a &lt;b&gt; $x", "Cells", "cost: points of accuracy on what stays",
    ):  # fmt: skip
        assert f">{words}</text>" in drawn
    bench_plots.left_against_cost(points[:1], "Cells", tmp_path / "q.svg")  # control
    assert "a &lt;b&gt;" not in (tmp_path / "q.svg").read_text()
    with pytest.raises(ValueError, match="there is no method to draw"):
        bench_plots.left_against_cost([], "Cells", tmp_path / "r.svg")
    with pytest.raises(ValueError, match="exists"):
        bench_plots.left_against_cost(points, "Cells", tmp_path / "p.svg")
