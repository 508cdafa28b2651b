"""docs/add-an-eraser.md, followed to the letter: one file, two words elsewhere, and it is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nullspace_unlearn.cli import main
from nullspace_unlearn.data import mini

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-an-eraser.md").read_text(encoding="utf-8")
RECIPE = """\
name: own
data: {kind: bundled, each: 1}
model: {name: nsu-mini}
requests: [{kind: global, choose: together, classes: [car]}]
methods: [{name: centre}]
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with what the page says to write."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(
        ROOT / "nullspace_unlearn", root / "nullspace_unlearn",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    file, import_ = re.findall(r"```python\n(.*?)```", PAGE, re.S)[:2]
    place = re.search(r"Write `([^`]*)`", PAGE)
    assert place is not None and import_.count("\n") == 1
    (root / place[1]).write_text(file, encoding="utf-8")
    table = root / "nullspace_unlearn" / "erasers" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    first = "from nullspace_unlearn.erasers.gated import"
    assert text.count("_ALL = (") == 1 and first in text
    text = text.replace(first, import_ + first, 1).replace("_ALL = (", "_ALL = (_centre, ")
    table.write_text(text.replace("(_centre, ", "(").replace("_ccup, ", "_centre, _ccup, "))
    (root / "own.yaml").write_text(RECIPE)
    mini.write_images(root / "pictures", ["car", "truck", "dog", "tree"], ["photo", "sketch"], [7])
    return root


RUN = """
import json, sys
from nullspace_unlearn.cli import main
for options in json.loads(sys.argv[1]):
    try:
        main(options)
    except SystemExit as done:
        print(f"<exit {done.code}>")
"""


def nsu(package: Path, *commands: tuple[str, ...]) -> list[str]:
    """Run commands of a package in one process, beside it; each ends in how it exited."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.split(r"(?<=>)\n", done.stdout)


def test_it_is_in_the_help_and_in_every_command(checkout: Path) -> None:
    car = ("--class", "car", "--method", "centre", "--data", "pictures")
    erase, sweep, erased, *rest = nsu(
        checkout, ("erase", "--help"), ("sweep", "--help"), ("erase", *car, "--json"),
        ("sweep", *car, "--output", "swept", "--quiet"),
        ("bench", "own.yaml", "--output", "benched", "--quiet"),
    )  # fmt: skip
    for told in (erase, sweep):
        assert "centre, ccup or leace" in " ".join(told.split())
    said = json.loads(erased.removesuffix("<exit 0>"))
    assert said["method"] == "centre" and said["numbers"]["rank"] >= 1
    assert said["figures"]["after"]["forgotten"] < said["figures"]["before"]["forgotten"]
    assert [one.strip() for one in rest] == ["<exit 0>", "<exit 0>", ""]
    table = (checkout / "swept" / "results.csv").read_text().splitlines()
    assert len(table) == 2 and "centre" in table[1]
    assert any("centre" in p.read_text() for p in (checkout / "benched").rglob("*.md"))


def test_without_the_two_steps_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the stock package knows no such method."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["erase", "--class", "car", "--method", "centre"])
    assert done.value.code == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_it_inherits_the_contract(checkout: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "centre",
         str(ROOT / "tests" / "erasers" / "test_contract.py")],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)
