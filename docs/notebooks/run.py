"""Run the notebooks and keep what they show, for the handbook: `python docs/notebooks/run.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbclient
import nbformat


def run(path: Path) -> None:
    """Run a notebook in an empty folder and store it with its outputs.

    Args:
        path: The notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            timeout=900,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # bars and warnings are of the machine it ran on
            cell.outputs = [one for one in cell.outputs if one.output_type != "stream"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for notebook in sorted(Path(__file__).parent.glob("*.ipynb")):
        run(notebook)
