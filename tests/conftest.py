"""Shape checks at run time, seeds, threads, and data that only some machines have."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

# Before the package is imported: in these modules every annotated shape is checked on every call.
SHAPED = (
    "audit", "bench", "certificate", "clip", "edit", "erasers", "evaluate", "linalg", "prototypes",
    "train", "unlearn",
)  # fmt: skip
jaxtyping.install_import_hook([f"nullspace_unlearn.{name}" for name in SHAPED], "typecheck.check")

# The same few examples every time; `--hypothesis-profile=default` looks for others.
settings.register_profile("repeatable", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Problems this small only lose time to threads that wait for a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unchecked() -> Callable[[], AbstractContextManager[None]]:
    """A context as users have it, without shape checks, to see the errors they would see."""

    @contextlib.contextmanager
    def off() -> Iterator[None]:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)

    return off


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 16 pixels, 7 in most cells of 3 classes x 2 domains; none twice."""
    from nullspace_unlearn.data import mini

    folder = tmp_path_factory.mktemp("small") / "images"
    sizes = {("car", "photo"): 9, ("dog", "sketch"): 6}
    for c in ("car", "dog", "tree"):
        for d in ("photo", "sketch"):
            (folder / d / c).mkdir(parents=True)
            for i in range(sizes.get((c, d), 7)):
                mini.render(c, d, 5_000_000 + i, size=16).save(folder / d / c / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Development data beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no development data: {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def imagenet(shared: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Real CLIP embeddings: images `[n, dim]`, their labels `[n]`, unit text prototypes."""
    numpy = pytest.importorskip("numpy")
    path = shared / "data" / "clip_vitb32" / "imagenet_4shot.npz"
    if not path.exists():
        pytest.skip(f"no ImageNet embeddings: {path} is not there")
    with numpy.load(path) as data:
        images = torch.from_numpy(data["image_features"]).double()
        text = torch.from_numpy(data["text_features"]).double()
        labels = torch.from_numpy(data["labels"]).long()
    return images, labels, text / text.norm(dim=-1, keepdim=True)
