"""Embedding into a file: the same bytes however it was stopped, and nothing of another job."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nullspace_unlearn import sealed
from nullspace_unlearn.clip import Clip, load
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.features import Features
from nullspace_unlearn.features import file as embedding
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.features.file import embed_to_file
from nullspace_unlearn.files import OutputExists

# 25 images in batches of 1: parts of 8, 8, 8 and 1.
OPTIONS: dict[str, Any] = {"batch_size": 1, "quiet": True}
PARTS = 4


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("images")
    mini.write_images(root, ["car", "dog"], ["photo", "sketch"], range(6))
    (root / "photo/car/2.png").write_bytes(b"no picture")
    (root / "sketch/dog/zz.png").write_bytes(b"")  # all there is of the last part
    return read_folder(root)


@pytest.fixture(scope="module")
def whole(clip: Clip, images: Source, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file, made in one go."""
    path = tmp_path_factory.mktemp("whole") / "x"
    embed_to_file(clip, images, path, **OPTIONS)
    return path.read_bytes()


def parts(path: Path) -> dict[str, Path]:
    folder = path.with_name(path.name + ".parts")
    return {file.name.split("-")[0]: file for file in folder.glob("[0-9]*")}


def stop_at(
    monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
) -> Callable[[], int]:
    """Let the n-th forward pass fail; says how many there were."""
    original, count = Clip.encode_both, 0

    def encode_both(self: Clip, some: Tensor) -> Any:
        nonlocal count
        count += 1
        if count == number:
            raise error
        return original(self, some)

    monkeypatch.setattr(Clip, "encode_both", encode_both)
    return lambda: count


def test_it_holds_what_embed_gives(clip: Clip, images: Source, tmp_path: Path) -> None:
    embed_to_file(clip, images, tmp_path / "deep/x", **OPTIONS)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]
    made, expected = Features.load(tmp_path / "deep/x"), embed(clip, images, hidden=True, **OPTIONS)
    for name in ("embeddings", "hidden", "labels", "domains"):
        assert torch.equal(getattr(made, name), getattr(expected, name)), name
    assert (made.class_names, made.domain_names) == (images.classes, images.domains)
    assert len(made) == len(images) - 2
    said = dict(made.provenance)
    assert said.pop("batch_size") == 1
    assert said.pop("contents") == images.fingerprint.facts
    assert said == json.loads(json.dumps(dict(expected.provenance)))
    assert said["made_with"] == clip.fingerprint.facts
    assert [one["file"] for one in said["skipped"]] == ["photo/car/2.png", "sketch/dog/zz.png"]
    assert str(images.pictures[0].holder[0]) not in json.dumps(dict(made.provenance))


def test_without_hidden_features(clip: Clip, images: Source, tmp_path: Path) -> None:
    embed_to_file(clip, images, tmp_path / "x", hidden=False, **OPTIONS)
    made, expected = Features.load(tmp_path / "x"), embed(clip, images, **OPTIONS)
    assert made.hidden is None and torch.equal(made.embeddings, expected.embeddings)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_a_run_cut_short_goes_on(
    clip: Clip,
    images: Source,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    path = tmp_path / "x"
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        stop_at(patch, 18, error)  # two parts and a piece of the third
        embed_to_file(clip, images, path, **OPTIONS)
    assert not path.exists() and set(parts(path)) == {"0", "1"}
    count = stop_at(monkeypatch, 0, error)
    embed_to_file(clip, images, path, **OPTIONS)
    assert count() == 8  # control: not all of the 23
    assert path.read_bytes() == whole and not parts(path)


def test_a_full_disk_keeps_what_is_done(
    clip: Clip, images: Source, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmp_path / "x", embedding.write_sealed

    def full(folder: Path, stem: str, *rest: Any) -> Path:
        if stem == "1":
            raise OSError(errno.ENOSPC, "No space left on device", "disk")
        return original(folder, stem, *rest)

    def full_at_once(*_: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(embedding, "new_file", full_at_once)
        embed_to_file(clip, images, path, **OPTIONS)
    message = "No space left on device: disk; 1 of 4 parts are done and kept, and the same command"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=message):
        patch.setattr(embedding, "write_sealed", full)
        embed_to_file(clip, images, path, **OPTIONS)

    def full_at_the_end(value: Tensor) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="4 of 4 parts are done"):
        patch.setattr(embedding, "to_bytes", full_at_the_end)
        embed_to_file(clip, images, path, **OPTIONS)
    assert not path.exists() and len(parts(path)) == PARTS
    count = stop_at(monkeypatch, 0, KeyboardInterrupt())
    embed_to_file(clip, images, path, **OPTIONS)
    assert count() == 0 and path.read_bytes() == whole


@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_part_is_made_again(
    clip: Clip,
    images: Source,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    checked: bool,
) -> None:
    path = tmp_path / "x"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 18, KeyboardInterrupt())
        embed_to_file(clip, images, path, **OPTIONS)
    data = bytearray(parts(path)["1"].read_bytes())
    data[-300] ^= 4
    parts(path)["1"].write_bytes(data)
    if not checked:  # control: without the hash it would be taken for whole

        class Anything:
            def __init__(self, data: bytes) -> None: ...

            def hexdigest(self) -> str:
                return parts(path)["1"].name[2:66]

        monkeypatch.setattr(sealed.hashlib, "sha256", Anything)
        read = sealed.read_sealed(parts(path)["1"])[0]
        assert read["embeddings"].shape == (8, clip.dim)
        return
    embed_to_file(clip, images, path, **OPTIONS)
    assert path.read_bytes() == whole
    (warning,) = recwarn.list
    assert "is damaged" in str(warning.message) and "made again" in str(warning.message)


def test_parts_of_another_job_are_refused(
    clip: Clip, images: Source, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 18, KeyboardInterrupt())
        embed_to_file(clip, images, path, **OPTIONS)
    before = parts(path)
    other = replace(clip, source=replace(clip.source, sha256="f" * 64))
    fewer = images.subset(torch.arange(1, len(images)))
    for model, some, options, message in (
        (other, images, OPTIONS, f"model.weights: {str(clip.source.sha256)[:12]}, now {'f' * 12}"),
        (clip, images, {**OPTIONS, "batch_size": 2}, "batch_size: 1, now 2"),
        (clip, images, {**OPTIONS, "hidden": False}, "hidden: true, now false"),
        (clip, fewer, OPTIONS, "images.cells: "),
    ):
        with pytest.raises(ValueError, match="holds parts of another job") as error:
            embed_to_file(model, some, path, **options)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert parts(path) == before
    embed_to_file(other, images, path, overwrite=True, **OPTIONS)
    assert Features.load(path).provenance["made_with"]["weights"] == "f" * 64
    with pytest.raises(OutputExists):
        embed_to_file(clip, images, path, **OPTIONS)
    embed_to_file(clip, images, path, overwrite=True, **OPTIONS)
    assert path.read_bytes() == whole


def test_parts_of_other_images_by_the_same_names_are_made_again(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = tmp_path / "images", tmp_path / "x"
    mini.write_images(root, ["car", "dog"], ["photo", "sketch"], range(5))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 18, KeyboardInterrupt())
        embed_to_file(clip, read_folder(root), path, **OPTIONS)
    assert set(parts(path)) == {"0", "1"}
    mini.write_images(tmp_path / "others", ["car"], ["photo"], range(5, 10))
    old, new = (sorted((at / "photo/car").iterdir()) for at in (root, tmp_path / "others"))
    for one, other in zip(old, new, strict=True):  # in part 0 alone
        other.replace(one)
    images = read_folder(root)
    with pytest.warns(UserWarning) as warned:
        embed_to_file(clip, images, path, **OPTIONS)
    assert ["images of part 0 have changed" in str(one.message) for one in warned] == [True]
    made, expected = Features.load(path), embed(clip, images, hidden=True, **OPTIONS)
    assert torch.equal(made.embeddings, expected.embeddings) and len(made) == 20


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(
    clip: Clip, images: Source, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "x.parts").mkdir()
    (tmp_path / "x.parts/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        embed_to_file(clip, images, tmp_path / "x", overwrite=overwrite, **OPTIONS)
    assert (tmp_path / "x.parts/mine.txt").read_text() == "mine"


def test_a_cell_without_a_readable_image(clip: Clip, tmp_path: Path) -> None:
    root = tmp_path / "images"
    mini.write_images(root, ["car", "dog"], ["photo", "sketch"], range(3))
    for file in (root / "photo/dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no readable image is left of class 'dog' in .*'photo'"):
        embed_to_file(clip, read_folder(root), tmp_path / "x", **OPTIONS)
    assert not (tmp_path / "x").exists() and set(parts(tmp_path / "x")) == {"1"}
    mini.write_images(root, ["dog"], ["photo"], range(3))  # put right, under the same names
    embed_to_file(clip, read_folder(root), tmp_path / "x", **OPTIONS)
    assert len(Features.load(tmp_path / "x")) == 12


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_numbers_out_of_range(
    clip: Clip, images: Source, tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        embed_to_file(clip, images, tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_models_that_a_file_could_not_speak_of(
    clip: Clip, images: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = replace(clip, source=replace(clip.source, sha256=None))
    bias = dict(clip.model.named_parameters())["visual.proj"]
    changed = clip.with_parameters({"visual.proj": bias + 1}, {})
    for model, why in ((random, "random weights"), (changed, "been changed since it was loaded")):
        with pytest.raises(ValueError, match=why):
            embed_to_file(model, images, tmp_path / "x", **OPTIONS)
    monkeypatch.setattr(
        Clip, "encode_both", lambda self, x: (x[:, :, 0, 0], torch.full((len(x), 64), np.nan))
    )
    with pytest.raises(ValueError, match="the image tower of nsu-mini gives NaN or Inf"):
        embed_to_file(clip, images, tmp_path / "y", **OPTIONS)
    assert not parts(tmp_path / "y") and not (tmp_path / "x.parts").exists()
