"""What reads and draws tables is imported where it is used: it takes longer than most commands."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from nullspace_unlearn.report import pareto, plots, tidy
print(*{"matplotlib", "pyarrow"} & set(sys.modules))
import matplotlib, pyarrow
print(*sorted({"matplotlib", "pyarrow"} & set(sys.modules)))
"""


def test_importing_reports_imports_nothing_that_draws_or_reads_them() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "matplotlib pyarrow"]  # the second is the control
