"""What README and handbook show can be typed: every command parses, every Python block compiles.

The blocks that need neither weights nor images of the reader's own are run as well, page by page.
A block that does need them says so in a comment before it: `<!-- not run: why -->`.
"""

from __future__ import annotations

import ast
import importlib
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from nullspace_unlearn.cli import nsu

ROOT = Path(__file__).parents[1]
# Another test follows this page step by step, as it makes the files that the page speaks of.
FOLLOWED = "add-an-eraser.md"
PAGES = sorted(
    page
    for page in [ROOT / "README.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]
    if page.name != FOLLOWED
)
NOTEBOOKS = sorted(page.name for page in (ROOT / "docs" / "notebooks").glob("*.ipynb"))
# These start the command many times, or train.
LONG = ("docs/patches.md", "docs/stores.md", "compare.ipynb")
_BLOCK = re.compile(r"(<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)
_INDENTED = re.compile(r"^    (nsu .*)$", re.M)


@dataclass(frozen=True)
class Block:
    page: str
    kind: str
    text: str
    run: bool


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        name = str(page.relative_to(ROOT))
        for match in _BLOCK.finditer(text):
            found.append(Block(name, match["kind"], match["text"], match["why"] is None))
        rest = _BLOCK.sub("", text)
        found += [Block(name, "bash", line, False) for line in _INDENTED.findall(rest)]
    return found


def commands(text: str) -> list[list[str]]:
    """The words after `nsu` of every call of it in some lines of shell."""
    words = []
    for line in text.replace("\\\n", " ").splitlines():
        call: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in ("&&", ";", "|", ">", "2>"):
                if call[:1] == ["nsu"]:
                    words.append(call[1:])
                call = []
            else:
                call.append(word)
    return words


def parse(arguments: list[str]) -> None:
    """Let click read a command line, options and choices, without running anything."""
    command: click.Command = nsu
    context = click.Context(nsu, info_name="nsu")
    while isinstance(command, click.Group) and arguments:
        name, command, arguments = command.resolve_command(context, arguments)
        assert command is not None, f"no command {name}"
        context = click.Context(command, info_name=name, parent=context)
    command.make_context(context.info_name, list(arguments), parent=context.parent)


SHELL = [one for one in blocks() if one.kind == "bash"]
PYTHON = [one for one in blocks() if one.kind == "python"]


def test_there_are_blocks_to_look_at():
    assert len(SHELL) > 10 and len(PYTHON) > 4


@pytest.mark.parametrize("block", SHELL, ids=lambda one: f"{one.page}: {one.text[:40]}")
def test_every_command_shown_parses(block):
    for arguments in commands(block.text):
        parse(arguments)


def test_a_command_that_does_not_exist_is_noticed():
    for wrong in (["erase", "--colour", "car"], ["forget"], ["certify"]):
        with pytest.raises(click.UsageError):
            parse(wrong)


@pytest.mark.parametrize("block", PYTHON, ids=lambda one: f"{one.page}: {one.text[:40]}")
def test_every_python_block_compiles_and_imports_what_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nullspace_unlearn"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def marked(name):
    """What takes longer than CI has is for before a release."""
    mark = pytest.mark.long if name in LONG else pytest.mark.slow
    return pytest.param(name, marks=mark, id=name)


RUN = [one for one in blocks() if one.run and one.kind in ("bash", "python")]


@pytest.mark.parametrize("page", map(marked, sorted({one.page for one in RUN})))
def test_what_needs_nothing_of_the_readers_own_runs(page, tmp_path, monkeypatch):
    """Python runs in this process, which has imported already, and each block by itself."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    monkeypatch.chdir(tmp_path)
    for block in RUN:
        if block.page == page and block.kind == "python":
            exec(compile(block.text, page, "exec"), {"__name__": "__main__"})
        elif block.page == page:
            done = subprocess.run(
                ["bash", "-euc", block.text], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block.text}\n{done.stderr[-2000:]}"


def shown(notebook):
    """What each cell shows, as text; bars and warnings are of the machine it ran on."""
    return [
        [one["data"]["text/plain"] for one in cell.outputs if "data" in one]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def alike(stored, found):
    """Whether two texts say the same, numbers up to what another machine makes of them."""
    number = re.compile(r"\d*\.?\d+")
    if number.sub("#", stored).split() != number.sub("#", found).split():
        return False
    pairs = zip(number.findall(stored), number.findall(found), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=0.02) for a, b in pairs)


@pytest.mark.parametrize("name", map(marked, NOTEBOOKS))
def test_notebooks_run_and_show_what_is_stored(name, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / name, as_version=4)
    stored = shown(notebook)
    assert sum(map(len, stored)) > 0
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for was, now in zip(stored, shown(notebook), strict=True):
        assert len(was) == len(now) and all(map(alike, was, now)), f"stored {was}, now {now}"


def test_an_output_that_is_not_todays_is_noticed():
    stored = "Forgotten: yes (left .00). Cost: 0.3 points"
    assert alike(stored, stored.replace("0.3", "0.301"))
    for other in (stored.replace("yes", "no"), stored.replace("0.3", "0.4")):
        assert not alike(stored, other)
