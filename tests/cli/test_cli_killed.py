"""Writing commands, killed at points spread over all that they do to files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_points import COMMANDS, CONTROLS
from killed import posix

HERE = Path(__file__).parent

ALL = (*COMMANDS, *CONTROLS)


@posix
@pytest.mark.parametrize(
    "points", [pytest.param(2, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.long)]
)
def test_a_kill_at_any_point_loses_nothing_and_refuses_nothing(tmp_path: Path, points: int) -> None:
    """Old outputs stay whole or give way to the new, and the next run is as ever."""
    said = killed(tmp_path, points, *ALL)
    assert {name: said[name]["wrong"] for name in COMMANDS} == dict.fromkeys(COMMANDS, [])
    # The controls: processes were killed; and where an order of renames leaves a gap, it is seen.
    assert sum(one["killed"] for one in said.values()) > 0.8 * points * len(ALL)
    for name, (_, _, expected) in CONTROLS.items():
        assert any(expected in problem for problem in said[name]["wrong"]), (name, said[name])


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
