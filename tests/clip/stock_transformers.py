"""Features of folders, by stock libraries: `python stock_transformers.py OUT.npz FOLDER...`."""

import sys
from pathlib import Path

import numpy as np
import tiny


def main(out: str, folders: list[str]) -> None:
    found = {}
    for folder in folders:
        of = tiny.sentences if (Path(folder) / "modules.json").is_file() else tiny.features
        for name, value in of(Path(folder)).items():
            found[f"{folder} {name}"] = value.numpy()
    assert not any(module.startswith("nullspace_unlearn") for module in sys.modules)
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
