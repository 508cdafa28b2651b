"""`nsu.evaluate`, `nsu.sweep`, `nsu.audit`: the commands' figures, as tables and pictures."""

from __future__ import annotations

import pytest

import nullspace_unlearn as nsu
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.evaluate.alone import measure_alone
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.notebook import Shown

pandas = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def world():
    clip = nsu.load("nsu-mini")
    return clip, nsu.erase(clip, nsu.Forget(["car"])).fold(clip), bundled_to_report(each=4)


@pytest.fixture(scope="module")
def beside(world):
    clip, edited, source = world
    return nsu.evaluate(edited, source, against=clip, quiet=True)


def test_the_table_holds_what_the_library_measures(world, beside):
    clip, edited, source = world
    features = [embed(one, source, quiet=True) for one in (clip, edited)]
    oracle = measure_alone(edited, features[1], against=(clip, features[0])).comparison
    table = beside.to_pandas().set_index("name")
    assert float(table.loc["left", "after"]) == pytest.approx(
        oracle.figures["after"]["left"], abs=5e-4
    )
    assert float(table.loc["left", "before"]) == 1  # the untouched model


def test_a_model_alone_is_shown_cell_by_cell(world):
    clip, _, source = world
    shown = nsu.evaluate(clip, source, quiet=True)
    table = shown.to_pandas()
    assert len(table) == len(source.classes) * len(source.words)
    assert table["images"].sum() == len(source)
    assert shown.plot().size[0] > 100


def test_pictures_and_tables_of_a_comparison(beside, tmp_path):
    assert beside.plot().size[0] > 100
    assert beside.plot(tmp_path / "grid.svg") is None and (tmp_path / "grid.svg").exists()
    assert "\\toprule" in beside.to_latex() and "left" in beside.to_latex()
    assert "<table" in beside._repr_html_() and beside.title in repr(beside)


def test_hostile_names_are_escaped():
    shown = Shown(None, "<script>", ({"class": "<b>&_%"},), lambda path: None)
    html, latex = shown._repr_html_(), shown.to_latex()
    assert "<script>" not in html and "<b>" not in html and "&lt;b&gt;" in html
    assert r"\&\_\%" in latex and "&_%" not in latex


def test_a_sweep_is_a_row_a_setting(world, tmp_path):
    clip, _, source = world
    shown = nsu.sweep(
        [nsu.Forget(["car"]), nsu.Forget(["dog"])], clip, source,
        methods=["hull", "leace"], strengths=[0.5, 1.0], quiet=True,
    )  # fmt: skip
    table = shown.to_pandas()
    assert len(table) == 4 and set(table["method"]) == {"hull", "leace"}
    whole = table[(table["method"] == "hull") & (table["strength"] == 1.0)]
    half = table[(table["method"] == "hull") & (table["strength"] == 0.5)]
    assert float(whole["left"].iloc[0]) < float(half["left"].iloc[0])  # the control
    assert shown.plot().size[0] > 100


def test_an_audit_is_a_row_a_figure(world):
    clip, edited, source = world
    shown = nsu.audit(edited, clip, source, only=["search"], quiet=True)
    table = shown.to_pandas()
    assert {"question", "verdict", "figure", "edited", "original", "chance"} <= set(table.columns)
    assert len(table) and shown.plot().size[0] > 100
