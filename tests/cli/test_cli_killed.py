"""Writing commands, killed at points spread over all that they do to files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_points import COMMANDS
from killed import posix

HERE = Path(__file__).parent


QUICK = ("erase", "embed", "revert", "patch", "apply", "export")


@posix
@pytest.mark.parametrize(
    ("names", "points"),
    [
        pytest.param(QUICK, 2, marks=pytest.mark.long),
        pytest.param(tuple(COMMANDS), 8, marks=pytest.mark.long),
    ],
)
def test_a_kill_at_any_point_loses_nothing_and_refuses_nothing(
    tmp_path: Path, names: tuple[str, ...], points: int
) -> None:
    """Old outputs stay whole or give way to the new, and the next run is as ever."""
    said = killed(tmp_path, points, *names)
    assert {name: one["wrong"] for name, one in said.items()} == dict.fromkeys(names, [])
    # The control: processes were killed, at as many points.
    assert sum(one["killed"] for one in said.values()) == points * len(names)


@posix
def test_a_kill_of_what_is_quick(tmp_path: Path) -> None:
    """The same for commands that need no model, in the default suite."""
    said = killed(tmp_path, 3, "recipes", "stores")
    assert {name: one["wrong"] for name, one in said.items()} == {"recipes": [], "stores": []}
    assert sum(one["killed"] for one in said.values()) == 6


def killed(folder: Path, points: int, *names: str) -> dict[str, Any]:
    paths = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, HERE / "kill_points.py", folder, str(points), *names],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
