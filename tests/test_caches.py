"""Facts and caches: whatever a result depends on is changed in turn, and every cache must notice.

What a cache does not depend on is changed as well, and must not cost anything: that is the control.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nullspace_unlearn as nsu
from nullspace_unlearn import fingerprint, train
from nullspace_unlearn.bench import runner
from nullspace_unlearn.bench.datasets import find_pools
from nullspace_unlearn.bench.recipe import Entry, Folder, Model, Recipe, Request
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.features import Features
from nullspace_unlearn.features import file as feature_file
from nullspace_unlearn.features.embed import check_made_with, embed
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import Synthesis, pixels, synthesise, text_cache
from nullspace_unlearn.words import Words

CLASSES, DOMAINS = ("car", "dog"), ("photo", "sketch")


class Noticed(Exception):
    """A cache began to work."""


@dataclass(frozen=True)
class World:
    """All that results are made from."""

    clip: Clip
    root: Path
    words: Words
    epochs: int = 1
    steps: int = 1


def with_config(part: str, name: str, value: Any) -> Callable[..., World]:
    def change(world: World, *_: Any) -> World:
        config = world.clip.config
        config = {**config, part: {**config[part], name: value}}
        return replace(world, clip=replace(world.clip, config=config))

    return change


def with_parameter(name: str) -> Callable[..., World]:
    def change(world: World, *_: Any) -> World:
        held = dict(world.clip.model.named_parameters())[name]
        return replace(world, clip=world.clip.with_parameters({name: held * 2}, {}))

    return change


def with_weights(world: World, *_: Any) -> World:
    source = replace(world.clip.source, sha256="f" * 64)
    return replace(world, clip=replace(world.clip, source=source))


def with_images(world: World, folder: Path, *_: Any) -> World:
    """Other images of the same names and sizes."""
    shutil.copytree(world.root, folder / "others")
    for file in (folder / "others").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")  # read all the same: after the last chunk
    return replace(world, root=folder / "others")


def with_template(world: World, *_: Any) -> World:
    words = replace(
        world.words,
        class_templates=("a picture of a {class}.",),
        cell_templates=("one {domain} of a {class}.",),
    )
    own = replace(world.clip, words=words)
    return replace(world, words=words, clip=own)


def with_code(world: World, folder: Path, patch: pytest.MonkeyPatch) -> World:
    patch.setattr(fingerprint, "_source", lambda modules: "another")
    return world


def with_library(world: World, folder: Path, patch: pytest.MonkeyPatch) -> World:
    patch.setattr(fingerprint, "_libraries", lambda: {"torch": "0.1"})
    return world


def with_default(world: World, folder: Path, patch: pytest.MonkeyPatch) -> World:
    """Another default of a method: nobody gives it, and no name tells."""
    kind = METHODS["gated"].numbers

    @dataclass(frozen=True)
    class Others(kind):  # type: ignore[misc, valid-type]
        ridge: float | None = 0.5

    patch.setitem(METHODS, "gated", replace(METHODS["gated"], numbers=Others))
    return replace(world, epochs=2, steps=2)


FACTS: dict[str, Callable[..., World]] = {
    "weights": with_weights,
    "activation": with_config("model_cfg", "quick_gelu", True),
    "mean": with_config("preprocess_cfg", "mean", [0.5, 0.5, 0.5]),
    "interpolation": with_config("preprocess_cfg", "interpolation", "nearest"),
    "image tower edited": with_parameter("visual.proj"),
    "text tower edited": with_parameter("text_projection"),
    "images": with_images,
    "templates": with_template,
    "numbers": with_default,
    "code": with_code,
    "library": with_library,
    "nothing": lambda world, *_: world,
}


def texts(world: World, kept: Path) -> None:
    text_cache.TextCache(kept).encode(world.clip, ["a photo of a car.", "a dog."])


def pictures(world: World, kept: Path) -> None:
    words, synthesis = dict(zip(DOMAINS, DOMAINS, strict=True)), Synthesis(1, world.steps)
    templates = world.words.cell_templates
    synthesise(world.clip, CLASSES, words, templates, synthesis, cache=kept, quiet=True)


def features(world: World, kept: Path) -> None:
    if not (kept / "features").exists():
        embed(world.clip, read_folder(world.root), quiet=True).save(kept / "features")
    check_made_with(Features.load(kept / "features"), world.clip)


def parts(world: World, kept: Path) -> None:
    feature_file.embed_to_file(world.clip, read_folder(world.root), kept / "x", quiet=True)


def training(world: World, kept: Path) -> None:
    source = read_folder(world.root)
    split = source.split(2, 0, 0)
    shots, none = (train.from_source(world.clip, some) for some in (split.given, split.validation))
    task = train.Task(world.clip, Forget(["car"], ["sketch"]), world.words, shots, none)
    method = train.configure("finetune", {"epochs": str(world.epochs)})
    train.train(method, task, folder=kept, quiet=True)


def bench(world: World, kept: Path) -> None:
    request = Request("cell", classes=("car",), domains=("sketch",))
    given = Recipe("x", Folder("images"), (request,), (Entry("gated"),), Model("nsu-mini"))
    root = kept.parent / f"root of {world.root.name}"
    root.mkdir(exist_ok=True)
    if not (root / "images").exists():
        (root / "images").symlink_to(world.root)
    pools = find_pools(given, root)
    trials = runner.trials_of(given, pools)
    done = runner.run(given, pools, world.clip, trials, kept, quiet=True)
    if done.failed:
        raise Noticed(done.failed[0][1])


_MODEL = {"weights", "activation", "mean", "interpolation", "image tower edited"}
_OURS = {"code", "library"}

CACHES: dict[str, tuple[Callable[[World, Path], None], set[str]]] = {
    "texts": (texts, {"weights", "activation", "text tower edited", *_OURS}),
    "pictures": (
        pictures,
        {*_MODEL, "text tower edited", "templates", "numbers", *_OURS},
    ),
    "features": (features, _MODEL),
    "parts": (parts, {*_MODEL, "text tower edited", "images", *_OURS}),
    "training": (
        training,
        {*_MODEL, "text tower edited", "images", "templates", "numbers", *_OURS},
    ),
    "bench": (
        bench,
        {*_MODEL, "text tower edited", "images", "templates", "numbers", *_OURS},
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world") / "images"
    mini.write_images(root, CLASSES, DOMAINS, range(3))
    clip = nsu.load("nsu-mini", device="cpu")
    words = Words(CLASSES, dict(zip(DOMAINS, DOMAINS, strict=True)), ("a {class}.",))
    return World(replace(clip, words=words), root, words)


@pytest.fixture(scope="module")
def kept(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each cache keeps of that world."""
    made: dict[str, Path] = {}
    for cache, (use, _) in CACHES.items():
        made[cache] = tmp_path_factory.mktemp(cache) / "kept"
        made[cache].mkdir()
        if cache == "parts":  # a job that was cut short
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Noticed):
                patch.setattr(feature_file, "_put_together", fail)
                use(world, made[cache])
        else:
            use(world, made[cache])
    return made


def fail(*_: Any, **__: Any) -> Any:
    raise Noticed


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is computed, so that whatever would be shows."""
    monkeypatch.setattr(text_cache, "_encode_alike", fail)
    monkeypatch.setattr(pixels, "_ascend", fail)
    monkeypatch.setattr(feature_file._Job, "features", fail)
    monkeypatch.setattr(runner, "run_method", fail)
    yield monkeypatch


@pytest.mark.filterwarnings("ignore:.*have changed since it was made")
@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_notices_what_it_depends_on(
    cache: str,
    fact: str,
    world: World,
    kept: dict[str, Path],
    lazy: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use, noticed = CACHES[cache]
    folder = Path(shutil.copytree(kept[cache], tmp_path / "kept"))
    changed = FACTS[fact](world, tmp_path, lazy)
    if fact in noticed:
        with pytest.raises((Noticed, ValueError)):
            use(changed, folder)
    else:
        use(changed, folder)


def test_the_images_of_other_contents_are_read_all_the_same(world: World, tmp_path: Path) -> None:
    """Else the fact would be another one: that files cannot be read."""
    other = with_images(world, tmp_path)
    one, two = (embed(world.clip, read_folder(at.root), quiet=True) for at in (world, other))
    assert torch.equal(one.embeddings, two.embeddings)
