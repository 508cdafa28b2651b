"""`nsu report` shows what `nsu erase` and `nsu sweep` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import nsu

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_an_edited_model_and_a_sweep() -> None:
    assert nsu("erase", "--class", "car", "--output", "out", "--quiet").code == 0
    sweep = ("sweep", "--class", "car", "--method", "hull", "--method", "leace")
    assert nsu(*sweep, "--output", "sweep", "--quiet").code == 0
    done = nsu("report", "out", "sweep", "--tables", "tables", "--json").json
    report = json.loads(Path("out/report.json").read_text())
    assert done["runs"] == [
        {"name": "out", "what": "an edited model", "verdict": report["verdict"]},
        {"name": "sweep", "what": "a sweep", "verdict": None},
    ]
    assert done["output"] == "report.html" and "plane-global.png" in done["tables"]
    page = Path("report.html").read_text()
    for words in (
        report["sentence"].replace("'", "&#39;").replace(">", "&gt;"),
        report["command"],
        report["versions"]["torch"],
        "The spectrum" if len(report["spectrum"]) > 1 else "Rank 1",
        "Every setting, means over requests",
        "leace (sweep)",
        "speaks of the whole list",
    ):
        assert words in page
    shown = nsu("report", "out", "--output", "b.html")
    assert shown.out == f"out, an edited model: {report['verdict']}\nWrote b.html\n"
    assert "a sweep" not in Path("b.html").read_text()  # control


def test_bad_input_is_said_in_one_line() -> None:
    Path("empty").mkdir()
    for arguments, says in (
        ((), "Missing argument"),
        (("absent",), "'absent' is no run: it must be a folder of nsu erase"),
        (("empty",), "'empty' is no run"),
        (("empty", "--output", "empty"), "output 'empty' exists; name another or pass --overwrite"),
    ):
        result = nsu("report", *arguments)
        assert result.code == 2 and says in result.err and result.err.count("\n") == 1
    assert not Path("report.html").exists()
