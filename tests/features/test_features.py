"""Features: computed once, kept exactly, refused where damaged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.features import Features, read_features
from nullspace_unlearn.features import features as features_module
from nullspace_unlearn.features.embed import check_made_with, embed, embed_each, made_with
from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.fingerprint import Fingerprint

Unchecked = Callable[[], AbstractContextManager[None]]


def features(**changes: Any) -> Features:
    random = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "embeddings": torch.randn(6, 3, generator=random),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "class_names": ("cat", "dog", "naïve 猫"),
        "hidden": torch.randn(6, 5, generator=random),
        "domains": torch.tensor([0, 0, 0, 1, 1, 1]),
        "domain_names": ("photo", "sketch"),
        "text": torch.randn(3, 3, generator=random),
        "provenance": {"model": "none", "skipped": [{"file": "a", "reason": "b"}]},
    }
    return Features(**{**values, **changes})


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


@pytest.mark.parametrize(
    "changes",
    [{}, {"hidden": None, "text": None}, {"domains": None, "domain_names": (), "provenance": {}}],
    ids=["all", "few", "no domains"],
)
def test_a_file_gives_back_the_very_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = features(**changes)
    first.save(tmp_path / "x.safetensors")
    for second in (
        Features.load(tmp_path / "x.safetensors"),
        read_features(tmp_path / "x.safetensors"),
    ):
        for field in dataclasses.fields(Features):
            assert same(getattr(first, field.name), getattr(second, field.name)), field.name
    other = features(labels=torch.tensor([1, 1, 2, 0, 1, 2]))
    assert not same(other.labels, Features.load(tmp_path / "x.safetensors").labels)


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputExists):
        features().save(path)
    assert path.read_text() == "mine"
    features().save(path, overwrite=True)
    assert len(read_features(path)) == 6


def test_half_precision_becomes_float32_exactly() -> None:
    half = torch.randn(6, 3).half()
    kept = features(embeddings=half, labels=torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.int16))
    assert kept.embeddings.dtype == torch.float32 and kept.labels.dtype == torch.int64
    assert torch.equal(kept.embeddings.half(), half)


BAD = torch.zeros(6, 3)
BAD[4, 1] = float("nan")
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "flat": ({"embeddings": torch.zeros(6)}, "embeddings must be [n, dim], got [6]"),
    "none": ({"embeddings": torch.zeros(0, 3), "labels": torch.zeros(0).long()}, "[0, 3]"),
    "integers": ({"embeddings": torch.zeros(6, 3).int()}, "must hold real numbers"),
    "NaN": ({"embeddings": BAD}, "got NaN or Inf, first in row 4"),
    "Inf": ({"hidden": BAD / 0}, "hidden must be finite"),
    "too large": ({"embeddings": torch.full((6, 3), 1e300, dtype=torch.float64)}, "NaN or Inf"),
    "labels missing": ({"labels": torch.zeros(5).long()}, "labels must be [6], got [5]"),
    "label": ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "from 0 to 2, got 0 to 3"),
    "negative": ({"labels": torch.tensor([0, 1, 2, -1, 0, 0])}, "from 0 to 2, got -1 to 2"),
    "real labels": ({"labels": torch.zeros(6)}, "labels must be integers"),
    "domain": ({"domains": torch.full((6,), 2)}, "domains must be from 0 to 1, got 2 to 2"),
    "no domains": ({"domains": None}, "2 domain names are given"),
    "hidden": ({"hidden": torch.zeros(5, 5)}, "hidden must be [6, dim]"),
    "text": ({"text": torch.zeros(3, 4)}, "text must be [3, 3], got [3, 4]"),
    "text classes": ({"text": torch.zeros(2, 3)}, "text must be [3, 3], got [2, 3]"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_refused_values(kind: str, unchecked: Unchecked) -> None:
    features()
    changes, message = WRONG[kind]
    with unchecked(), pytest.raises(ValueError, match=re.escape(message)):
        features(**changes)


def test_nan_is_found_whatever_is_looked_at_at_once(
    unchecked: Unchecked, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in (1, 2, 4, 5, 6, 7):
        monkeypatch.setattr(features_module, "_ROWS", rows)
        features()  # control
        with unchecked(), pytest.raises(ValueError, match="first in row 4"):
            features(embeddings=BAD)


def test_a_loaded_file_is_mapped_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    features().save(path)
    before, loaded = path.read_bytes(), Features.load(path)
    loaded.embeddings.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_half_written_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".npz":
        np.savez_compressed(whole, image_features=np.random.rand(50, 9), labels=np.arange(50))
    else:
        features().save(whole)
    read_features(whole)
    data = whole.read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match="not a feature file") as error:
        read_features(tmp_path / f"half{suffix}")
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="its format is None"):
        read_features(tmp_path / "weights.safetensors")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not a feature file"):
        read_features(tmp_path / "text.npz")
    for name in ("missing.npz", "."):
        with pytest.raises(ValueError, match="is not a file"):
            read_features(tmp_path / name)


ROWS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])


def archive(path: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {
        "image_features": ROWS.astype(np.float16),
        "labels": np.array([0, 1, 1, 0], np.int16),
        "text_features": np.eye(2, 3),
        "class_names": np.array(["cat", "dog"]),
        "pixels": np.zeros((4, 8, 8, 3), np.uint8),
    }
    arrays.update(changes)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_rows_of_zeros_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = ROWS * np.array([[1.0], [0], [1], [0]])
    domains = np.array(["photo", "photo", "sketch", "photo"])
    read = read_features(archive(tmp_path / "a.npz", image_features=rows, domains=domains))
    assert torch.equal(read.embeddings, torch.tensor(rows[::2]).float())
    assert read.labels.tolist() == [0, 1] and read.provenance["zero_rows"] == 2
    assert read.domains is not None and read.domains.tolist() == [0, 1]
    read.save(tmp_path / "b")
    assert read_features(tmp_path / "b").provenance["zero_rows"] == 2
    assert "zero_rows" not in read_features(archive(tmp_path / "c.npz")).provenance  # control
    with pytest.raises(ValueError, match="all its rows are zeros"):
        read_features(archive(tmp_path / "d.npz", image_features=0 * rows))


@pytest.mark.parametrize(
    "arrays, names",
    [
        ({"domains": np.array([1, 0, 1, 1]), "domain_names": np.array(["a", "b"])}, ("a", "b")),
        ({"domains": np.array(["b", "a", "b", "b"])}, ("a", "b")),
        ({"domains": np.array([1, 0, 1, 1], np.uint8)}, ("0", "1")),
    ],
)
def test_domains_of_an_npz_are_read(
    tmp_path: Path, arrays: dict[str, Any], names: tuple[str, ...]
) -> None:
    read = read_features(archive(tmp_path / "a.npz", **arrays).rename(tmp_path / "A.NPZ"))
    assert read.domains is not None and read.domains.tolist() == [1, 0, 1, 1]
    assert read.domain_names == names
    renamed = archive(tmp_path / "b.npz", class_names=None, classes=np.array(["x", "y"]))
    assert read_features(renamed).class_names == ("x", "y")


def test_an_npz_is_read(tmp_path: Path) -> None:
    read = read_features(archive(tmp_path / "a.npz"))
    assert read.class_names == ("cat", "dog") and read.labels.tolist() == [0, 1, 1, 0]
    assert torch.equal(read.embeddings, torch.tensor(ROWS).float())
    assert read.text is not None and torch.equal(read.text, torch.eye(2, 3))
    assert read.domains is None and read.domain_names == ()
    swapped = read_features(archive(tmp_path / "b.npz", labels=np.array([0, 1, 1, 0], ">u4")))
    assert torch.equal(swapped.labels, read.labels)
    bare = read_features(archive(tmp_path / "c.npz", text_features=None, class_names=None))
    assert bare.text is None and bare.class_names == () and bare.labels.max() == 1
    named = dataclasses.replace(bare, class_names=("cat", "dog"))
    assert torch.equal(named.labels, read.labels)
    with pytest.raises(ValueError, match="labels must be from 0 to 0, got 0 to 1"):
        dataclasses.replace(bare, class_names=("cat",))
    with pytest.raises(ValueError, match="labels must be from 0, got -1 to 1"):
        dataclasses.replace(bare, labels=bare.labels.flip(0) * torch.tensor([1, 1, -1, 1]))
    numbered = read_features(archive(tmp_path / "d.npz", class_names=None))
    assert numbered.text is not None and numbered.class_names == ("0", "1")


class Payload:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_features": None}, "it lacks 'image_features'; it holds labels"),
        ({"labels": None}, "it lacks 'labels'"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels must be from 0 to 1, got 0 to 2"),
        ({"labels": np.array(["a", "b", "a", "b"])}, "labels must hold numbers"),
        ({"labels": np.zeros((4, 1), int)}, r"labels must be \[4\], got \[4, 1\]"),
        ({"image_features": np.full((4, 3), np.inf)}, "NaN or Inf"),
        ({"image_features": np.zeros((4, 3, 1))}, r"got \[4, 3, 1\]"),
        ({"image_features": np.zeros((4, 3), int)}, "real numbers"),
        ({"image_features": np.zeros((4, 3), complex)}, "must hold numbers"),
        ({"text_features": np.zeros((2, 5))}, r"text must be \[2, 3\], got \[2, 5\]"),
        ({"class_names": np.array(["cat"])}, "got 0 to 1"),
        ({"class_names": np.array([1, 2])}, "list of strings"),
        ({"class_names": np.array([Payload(), "x"], object)}, "allow_pickle"),
        ({"image_features": np.array([Payload()], object)}, "allow_pickle"),
    ],
)
def test_refused_npz(
    tmp_path: Path, unchecked: Unchecked, changes: dict[str, Any], message: str
) -> None:
    with unchecked(), pytest.raises(ValueError, match=message) as error:
        read_features(archive(tmp_path / "a.npz", **changes))
    assert "\n" not in str(error.value)


# Embedding.


def linear_clip(weight: Tensor) -> Any:
    """A model whose hidden feature is the mean colour and whose embedding is linear in it."""

    def preprocess(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def hidden(images: Tensor) -> Tensor:
        return images.mean((2, 3))

    return SimpleNamespace(
        preprocess=preprocess,
        encode_both=lambda images: (hidden(images), hidden(images) @ weight),
        encode_image=lambda images: hidden(images) @ weight,
        source=SimpleNamespace(name="linear", pretrained=None, sha256="0"),
        fingerprint=Fingerprint(
            {
                "weights": "0" * 64,
                "edits": {"visual": None, "text": None},
                "model_cfg": {"quick_gelu": False},
                "preprocessing": {"mean": [0, 0, 0]},
                "adapter": None,
                "precision": "float32",
            }
        ),
        device=torch.device("cpu"),
        dim=2,
    )


def test_embeddings_belong_to_their_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unchecked: Unchecked
) -> None:
    wanted = []
    for d, domain in enumerate(("a", "b")):
        for c, name in enumerate(("cat", "dog")):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(3):
                colour = (10 * d + 1, 20 * c, i)
                Image.new("RGB", (4, 4), colour).save(tmp_path / domain / name / f"{i}.png")
                wanted.append((c, d, colour))
    (tmp_path / "a/dog/1.png").write_bytes(b"")
    wanted = [w for w in wanted if w != (1, 0, (1, 20, 1))]
    weight = torch.randn(3, 2)
    images = read_folder(tmp_path)
    with unchecked():
        found = embed(linear_clip(weight), images, batch_size=4, workers=2, hidden=True)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == ""  # no bar where there is no terminal
    assert found.class_names == ("cat", "dog") and found.domain_names == ("a", "b")
    assert found.domains is not None and found.hidden is not None
    rows = zip(found.labels.tolist(), found.domains.tolist(), found.hidden.tolist(), strict=True)
    assert [(c, d, tuple(h)) for c, d, h in rows] == wanted
    torch.testing.assert_close(found.embeddings, found.hidden @ weight)
    assert [file["file"] for file in found.provenance["skipped"]] == ["a/dog/1.png"]
    with unchecked():
        bare = embed(linear_clip(weight), images, quiet=True)
    assert bare.hidden is None and torch.equal(bare.embeddings, found.embeddings)
    assert capsys.readouterr().err == ""
    with unchecked(), pytest.raises(ValueError, match="NaN or Inf"):
        embed(linear_clip(weight / 0), images, quiet=True)
    found.save(tmp_path / "saved")
    assert read_features(tmp_path / "saved").provenance == found.provenance


@pytest.mark.parametrize("alike", [True, False])
def test_models_that_prepare_images_alike_read_each_once(
    tmp_path: Path, unchecked: Unchecked, alike: bool
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4), (i, 2, 3)).save(tmp_path / name / f"{i}.png")
    images, read = read_folder(tmp_path), []
    models = [linear_clip(torch.randn(3, 2)) for _ in range(2)]
    for model in models:
        prepare = model.preprocess
        model.preprocess = lambda image, prepare=prepare: (read.append(image), prepare(image))[1]
    if not alike:
        facts = {**models[1].fingerprint.facts, "preprocessing": {"mean": [1, 0, 0]}}
        models[1].fingerprint = Fingerprint(facts)
    with unchecked():
        found = embed_each(models, images, batch_size=4, quiet=True)
        assert len(read) == (6 if alike else 12)
        for one, model in zip(found, models, strict=True):
            own = embed(model, images, batch_size=4, quiet=True)
            assert torch.equal(one.embeddings, own.embeddings)
            assert one.provenance == own.provenance


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "1" * 64}, "weights: 111111111111, now 000000000000"),
        ({"model_cfg": {"quick_gelu": True}}, "model_cfg.quick_gelu: true, now false"),
        (
            {"preprocessing": {"mean": [0, 0, 1]}},
            "preprocessing.mean: .*, now .*",
        ),
        ({"adapter": "2"}, "adapter: 2, now null"),
        ({"edits": {"visual": "3", "text": None}}, "edits.visual: 3, now null"),
        ({"edits": {"visual": None, "text": "3"}}, None),
        ({"precision": "bfloat16"}, None),
        ({}, None),
    ],
)
def test_features_of_another_model_are_refused(
    changed: dict[str, Any], message: str | None, unchecked: Unchecked
) -> None:
    clip = linear_clip(torch.eye(3))
    clip.dim = 3
    made = made_with(clip)
    said = {**made, "made_with": {**made["made_with"], **changed}}
    with unchecked():
        if message is None:
            check_made_with(features(provenance=said), clip)
        else:
            with pytest.raises(ValueError, match=f"not of this model: {message}$"):
                check_made_with(features(provenance=said), clip)


def test_features_that_do_not_say_what_made_them_must_fit_alone(unchecked: Unchecked) -> None:
    clip = linear_clip(torch.eye(3))
    with unchecked():
        with pytest.raises(ValueError, match="have 3 dimensions and the model 2"):
            check_made_with(features(), clip)
        clip.dim = 3
        check_made_with(features(), clip)  # control


# Real models.


def published(readme: str) -> dict[tuple[str, str], float]:
    """Accuracy of each (class, domain), from the table in a model's README."""
    rows = [line.strip("| ").split(" | ") for line in readme.splitlines() if line.startswith("|")]
    classes = rows[0]
    return {
        (name, row[0]): float(value)
        for row in rows[2:]
        for name, value in zip(classes, row[1:], strict=True)
    }


def test_a_real_models_accuracy_is_the_published_one(shared: Path) -> None:
    folder = shared / "models" / "clip-rn-pacs"
    if not folder.is_dir():
        pytest.skip("the PACS models are not beside the project")
    from nullspace_unlearn.clip import load

    clip = load(str(folder), device="cpu")
    images = read_folder(shared / "data" / "pacs", listing=folder / "test.txt")
    found = embed(clip, images, quiet=True)
    text = clip.encode_text([f"a picture of a {name}" for name in found.class_names])
    grid = accuracy_grid(predict(found.embeddings, text), found.labels, found.domains, 7, 4)
    table = published((folder / "README.md").read_text())
    assert len(table) == 28
    for (name, domain), value in table.items():
        cell = found.class_names.index(name), found.domain_names.index(domain)
        assert float(grid.accuracy[cell]) == pytest.approx(value, abs=0.0051)


@pytest.mark.parametrize("name", ["imagenet_4shot", "cifar10_500"])
def test_real_clip_features(shared: Path, name: str) -> None:
    path = shared / "data" / "clip_vitb32" / f"{name}.npz"
    if not path.is_file():
        pytest.skip("the CLIP features are not beside the project")
    read = read_features(path)
    assert read.embeddings.shape == (len(read), 512)
    if name == "cifar10_500":
        assert read.text is None and read.class_names == () and read.labels.max() == 9
    else:
        assert read.text is not None and read.class_names[0] == "tench"
        right = predict(read.embeddings, read.text) == read.labels
        assert float(right.float().mean()) == pytest.approx(0.611, abs=0.001)


def test_the_same_features_give_the_same_bytes(tmp_path: Path) -> None:
    made = features(provenance={"a": 1, "b": [2], "c": "d"})
    for name in "abcdef":
        made.save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1
    assert Features.load(tmp_path / "a").labels.dtype == torch.int64
