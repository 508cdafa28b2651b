"""What is imported only where it is used: one fresh process goes from the lightest on."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import contextlib, io, json, sys
HEAVY = ("torch", "open_clip", "numpy", "matplotlib", "pyarrow", "pandas",
         "nullspace_unlearn.notebook")
seen = {}
def look(name):
    seen[name] = [one for one in HEAVY if one in sys.modules]
def command(*words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(list(words))
    look(" ".join(words))

from nullspace_unlearn.cli import main, nsu
look("command line")
command("train", "--help")
from click.shell_completion import ShellComplete
for words in (["erase", "--method"], ["erase", "--model"], ["erase", "--class"]):
    assert ShellComplete(nsu, {}, "nsu", "_").get_completions(words, "")
look("completion")
import nullspace_unlearn as n
dir(n)
assert callable(n.evaluate) and n.audit and "nullspace_unlearn.evaluate" in sys.modules
look("the public face")
n.Edit
look("an edit")
from nullspace_unlearn.report import pareto, plots, tidy
look("reports")
import matplotlib, pyarrow
look("what draws and reads them")
sys.modules["resource"] = None  # as on Windows
import torch
from nullspace_unlearn.train import loop
seen["peak"] = loop._peak_bytes(torch.device("cpu"))
print(json.dumps(seen))
"""


def test_what_takes_long_is_imported_where_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for light in ("command line", "train --help", "completion"):
        assert seen[light] == [], light
    assert not {"torch", "matplotlib", "pandas", "nullspace_unlearn.notebook"} & {
        *seen["the public face"]
    }
    assert "torch" in seen["an edit"]  # control
    assert not {"matplotlib", "pyarrow"} & {*seen["reports"]}
    assert {"matplotlib", "pyarrow"} <= {*seen["what draws and reads them"]}  # control
    assert seen["peak"] is None  # unknown without the module `resource`, and no error
