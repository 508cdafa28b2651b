"""Writing commands, killed at points spread over all that they do to files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killed import posix

HERE = Path(__file__).parent


@posix
@pytest.mark.slow
def test_a_kill_at_any_point_loses_nothing_and_refuses_nothing(tmp_path: Path) -> None:
    """30 points: old outputs stay whole or give way to the new, and the next run is as ever."""
    paths = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, HERE / "kill_points.py", tmp_path, "5"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {name: one["wrong"] for name, one in said.items()} == dict.fromkeys(said, [])
    # The control: processes were killed, at as many points.
    assert sum(one["killed"] for one in said.values()) == 30
