"""One model, and a few bundled pictures in the layouts of real data sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from layouts import CLASSES, DOMAINS  # noqa: E402

import nullspace_unlearn as nsu  # noqa: E402
from nullspace_unlearn.clip import Clip  # noqa: E402
from nullspace_unlearn.data import mini  # noqa: E402


@pytest.fixture(scope="session")
def clip() -> Clip:
    return nsu.load("nsu-mini")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root: pictures in several layouts, lists of them, and feature files."""
    root = tmp_path_factory.mktemp("root")
    mini.write_images(root / "images", CLASSES, DOMAINS, range(4000, 4004))
    _write_lists(root)
    mini.write_images(root / "sets" / "a", ["car", "truck"], ["photo"], range(4100, 4103))
    mini.write_images(root / "sets" / "b", ["dog", "tree"], ["photo"], range(4100, 4103))
    _write_cifar(root)
    return root


def _write_lists(root: Path) -> None:
    """Dassl's split files: images 0 and 1 of a cell to report on, 2 and 3 to draw."""
    folder = root / "splits"
    folder.mkdir()
    for domain in DOMAINS:
        for part, seeds in (("test", (4000, 4001)), ("train", (4002, 4003))):
            lines = [f"{domain}/{c}/{s}.png {i}" for i, c in enumerate(CLASSES) for s in seeds]
            (folder / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")


def _write_cifar(root: Path) -> None:
    """CIFAR-10 and -100, binary: 3 classes, pictures of the bundled ones, half their size."""
    for name, files, names, ahead in (
        ("ten", ("data_batch_1.bin", "test_batch.bin"), "batches.meta.txt", 1),
        ("hundred", ("train.bin", "test.bin"), "fine_label_names.txt", 2),
    ):
        folder = root / name
        folder.mkdir()
        (folder / names).write_text("car\ndog\npine_tree\n\n")
        for number, file in enumerate(files):
            records = []
            for seed in range(3):
                for label, drawn in enumerate(CLASSES):
                    picture = mini.render(drawn, "photo", 4200 + 10 * number + seed, 32)
                    planes = np.asarray(picture).transpose(2, 0, 1)
                    head = np.full(ahead, 7, np.uint8)
                    head[-1] = label
                    records.append(np.concatenate([head, planes.ravel()]))
            np.stack(records).tofile(folder / file)
