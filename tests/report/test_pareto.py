"""The front against its definition, means against plain loops, and the picture."""

from __future__ import annotations

import builtins
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.evaluate.sweep import COLUMNS
from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.report.pareto import named_plot, pareto_front, pareto_plot, summarise

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
SHARE = st.integers(0, 4).map(lambda k: k / 4)


@given(st.lists(st.tuples(SHARE, SHARE), max_size=8))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    best = {i for i, one in enumerate(points) if not any(beats(other, one) for other in points)}
    assert pareto_front(points) == best


def table(kinds: tuple[str, ...] = ("global", "cell"), requests: int = 5) -> list[dict[str, Any]]:
    """Rows of two methods, in no order, one of which refuses a request."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        for request in range(requests):
            before = {
                name: draw.random() for name in COLUMNS if name.startswith(("before", "ideal"))
            }
            for method, numbers in (("nullspace", None), ("hull", "ridge=0.1")):
                for strength in (0.5, 1.0):
                    row = dict.fromkeys(COLUMNS) | before
                    row |= {"request": request, "kind": kind, "method": method}
                    row |= {"strength": strength, "numbers": numbers}
                    if method == "hull" and request == 0 and kind == "global":
                        row["refused"] = "it would remove nothing"
                    else:
                        row |= {name: draw.random() for name in FIGURES}
                        row["over"] = 0.5 if (request, strength) == (1, 0.5) else 0.0
                        row["found"] = None if request == 3 else draw.random()
                    rows.append(row)
    draw.shuffle(rows)
    return rows


def test_means_are_over_requests() -> None:
    rows = table()
    kinds = {kind.kind: kind for kind in summarise(iter(rows))}
    assert set(kinds) == {"global", "cell"}
    for name, kind in kinds.items():
        assert len(kind.settings) == 4
        for setting in kind.settings:
            key = (name, setting.method, setting.strength)
            mine = [r for r in rows if (r["kind"], r["method"], r["strength"]) == key]
            told = [r for r in mine if r["refused"] is None]
            refused = int(name == "global" and setting.method == "hull")
            assert (setting.measured, setting.refused) == (5 - refused, refused)
            assert setting.means is not None
            for figure in ("left", "cost", "worst_kept", "balance", "found"):
                mean = statistics.fmean(r[figure] for r in told if r[figure] is not None)
                assert setting.means[figure] == pytest.approx(mean)
        by_request = {r["request"]: r for r in rows if r["kind"] == name}.values()
        for means, prefix in ((kind.untouched, "before"), (kind.ideal, "ideal")):
            mean = statistics.fmean(r[f"{prefix}_kept"] for r in by_request)
            assert means["kept"] == pytest.approx(mean)
        able = [o for o in kind.settings if o.means and o.means["over"] <= 0.1]
        points = [*((o.means["left"], -o.means["cost"]) for o in able), (1.0, 0.0)]
        assert [o for o in kind.settings if o.on_front] == [
            o for i, o in enumerate(able) if i in pareto_front(points)
        ]
    assert kinds["global"].untouched != kinds["cell"].untouched


def test_a_method_that_refused_everything_has_no_means() -> None:
    rows = [r | {"refused": "no", "kept": None} for r in table() if r["method"] == "hull"]
    (kind, _) = summarise(rows)
    assert all(o.means is None and not o.on_front and o.refused == 5 for o in kind.settings)
    assert kind.to_json()["settings"][0]["means"] is None


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def area(picture: np.ndarray, colour: tuple[int, ...]) -> int:
    return int((np.abs(picture - np.array(colour)).max(-1) <= 2).sum())


def test_the_picture_shows_each_method_and_kind(tmp_path: Path) -> None:
    both, one = summarise(table()), summarise(table(("cell",)))
    pareto_plot(both, tmp_path / "both.png")
    pareto_plot(one, tmp_path / "one.png")
    alone = summarise([row for row in table(("cell",)) if row["method"] == "hull"])
    pareto_plot(alone, tmp_path / "alone.png")
    wide, narrow = drawn(tmp_path / "both.png"), drawn(tmp_path / "one.png")
    assert wide.shape[1] > 1.5 * narrow.shape[1]
    assert all(
        area(picture, colour) > 60 for picture in (wide, narrow) for colour in (BLUE, ORANGE)
    )
    assert not area(drawn(tmp_path / "alone.png"), ORANGE)  # the control: the second method


def test_what_is_over_forgotten_is_hollow_and_off_the_front(tmp_path: Path) -> None:
    rows = [row for row in table(("cell",)) if row["method"] == "hull"]
    filled = [row | {"over": 0.0} for row in rows]
    over = [row | {"over": 0.5} for row in rows]
    areas = []
    for name, some in (("filled", filled), ("over", over)):
        (kind,) = summarise(some)
        pareto_plot([kind], tmp_path / f"{name}.png")
        areas.append(area(drawn(tmp_path / f"{name}.png"), BLUE))
        assert any(o.on_front for o in kind.settings) == (name == "filled")
    assert areas[0] > areas[1] > 0


def test_the_curve_of_list_lengths(tmp_path: Path) -> None:
    kinds = summarise(table())
    named_plot(kinds, tmp_path / "named.svg")
    said = (tmp_path / "named.svg").read_text()
    for words in ("untouched", "hull", "nullspace", "names on the list", "all"):
        assert f">{words}" in said
    with pytest.raises(ValueError, match="nothing to draw"):
        named_plot([], tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    kinds = summarise(table(("domain",), 1))
    pareto_plot(kinds, path)
    assert suffix[1:].lower().encode() in path.read_bytes()[:500].lower()
    with pytest.raises(OutputExists):
        pareto_plot(kinds, path)
    pareto_plot(kinds, path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = summarise(table())
    with pytest.raises(ValueError, match=r"ends in '.bmp'; allowed: .png .svg .pdf"):
        pareto_plot(kinds, tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="nothing to draw"):
        pareto_plot(summarise([]), tmp_path / "a.png")
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'nullspace-unlearn\[report\]'"):
        pareto_plot(kinds, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
