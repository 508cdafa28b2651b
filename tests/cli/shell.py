"""Run `nsu` in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.cli import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout, without NaN or Infinity."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} in JSON")

        value = json.loads(self.out, parse_constant=refuse)
        assert isinstance(value, dict)
        return value


def nsu(*arguments: object) -> Result:
    """Run `nsu` in this process."""
    out, err = io.StringIO(), io.StringIO()
    level, shown = logging.getLogger().level, warnings.showwarning
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    finally:
        logging.getLogger().setLevel(level)
        warnings.showwarning = shown
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())


def nsu_process(*arguments: object, code: str = "main()", **options: Any) -> Result:
    """Run `nsu` as a user's shell would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"from nullspace_unlearn.cli import main\n{code}"]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, **options
    )
    return Result(done.returncode, done.stdout, done.stderr)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with sizes and times of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
