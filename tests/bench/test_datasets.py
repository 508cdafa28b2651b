"""Every kind of data, in the layout it comes in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import CLASSES, DOMAINS

from nullspace_unlearn.bench.datasets import Pool, absent, find_pools
from nullspace_unlearn.bench.recipe import (
    Bundled,
    Cifar,
    Data,
    Domains,
    Entry,
    FeatureFile,
    Folder,
    Model,
    Recipe,
    Request,
    Sets,
)
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.features.embed import embed

LISTS = {"report": "splits/*_test.txt", "draw": "splits/*_train.txt"}


def pools(data: Data, root: Path) -> tuple[Pool, ...]:
    model = None if isinstance(data, FeatureFile) else Model("nsu-mini")
    request = Request("global", dataset="a" if isinstance(data, Sets) else "")
    return find_pools(Recipe("mine", data, (request,), (Entry("hull"),), model), root)


def pool(data: Data, root: Path) -> Pool:
    (one,) = pools(data, root)
    return one


def files(shots: Any) -> set[str]:
    return set(shots.source["files"])


def test_dassls_split_files_say_what_is_reported_and_what_is_drawn(root: Path, clip: Clip) -> None:
    words = {"photo": "photograph"}
    one = pool(Folder("images", **LISTS, domain_words=words), root)
    assert one.classes == CLASSES
    assert one.domains == {"photo": "photograph", "sketch": "sketch"}
    features = one.embed(clip, False, True)
    assert len(features) == 2 * 3 * 2 and one.covered.all()
    shots, validation = one.draw(clip, 1, 1, 0)  # type: ignore[misc]
    drawn = files(shots) | files(validation)
    assert len(drawn) == 12 and {Path(name).stem for name in drawn} == {"4002", "4003"}
    assert files(shots) != files(one.draw(clip, 1, 1, 1)[0])  # type: ignore[misc]
    # The label comes from the folder, whichever file lists it: as if the folder were read whole.
    whole = pool(Folder("images"), root).embed(clip, False, True)
    torch.testing.assert_close(features.embeddings, whole.embeddings.reshape(6, 4, -1)[:, :2]
                               .reshape(12, -1))  # fmt: skip
    assert features.labels.tolist() == whole.labels.reshape(6, 4)[:, :2].flatten().tolist()


def test_a_share_is_held_out_of_every_cell(root: Path, clip: Clip) -> None:
    one = pool(Folder("images", held_out=0.25), root)
    features = one.embed(clip, False, True)
    assert len(features) == 6  # 1 of 4 in each cell
    shots, _ = one.draw(clip, 3, 0, 0)  # type: ignore[misc]
    assert len(files(shots)) == 18  # all others
    skipped = pool(Folder("images", "splits/*_none.txt", held_out=0.25), root)
    assert torch.equal(skipped.embed(clip, False, True).embeddings, features.embeddings)
    assert pool(Folder("images"), root).learned is None  # control: all is reported on


def test_an_image_is_not_both_reported_on_and_drawn(root: Path) -> None:
    with pytest.raises(ValueError, match="12 images are both reported on and given to methods"):
        pool(Folder("images", LISTS["report"], LISTS["report"]), root)


def test_only_some_domains_and_images(root: Path, clip: Clip) -> None:
    one = pool(Folder("images", domains=("sketch",), each=2), root)
    assert one.domains == {"sketch": "sketch"}
    assert len(one.embed(clip, False, True)) == 6
    with pytest.raises(ValueError, match="there is no domain 'oil', only photo, sketch"):
        pool(Folder("images", domains=("oil",)), root)


def test_folders_of_classes_are_domains(root: Path, clip: Clip) -> None:
    folders = {"photo": "images/photo", "sketch": "images/sketch"}
    one = pool(Domains(folders, domain_words={"photo": "photograph"}), root)
    assert one.domains == {"photo": "photograph", "sketch": "sketch"}
    features = one.embed(clip, False, True)
    whole = pool(Folder("images"), root).embed(clip, False, True)
    assert torch.equal(features.embeddings, whole.embeddings)
    assert torch.equal(features.labels, whole.labels)


@pytest.fixture(scope="module")
def imagenet(root: Path) -> Path:
    """Folders named by number; a second domain lacks one of them."""
    for domain, numbers in (("val", NUMBERS), ("renditions", (NUMBERS[0], NUMBERS[2]))):
        for seed, number in enumerate(numbers):
            folder = root / domain / number
            folder.mkdir(parents=True, exist_ok=True)
            mini.render("car", "photo", seed).save(folder / "a.JPEG")
    return root


NUMBERS = ("n01440764", "n01443537", "n01484850")


def test_imagenets_folders_get_their_names_and_common_leaves_the_common_ones(
    imagenet: Path,
) -> None:
    from open_clip import IMAGENET_CLASSNAMES

    folders = {"photo": "val", "rendition": "renditions"}
    one = pool(Domains(folders), imagenet)
    assert one.classes == tuple(IMAGENET_CLASSNAMES[:3])
    assert not one.covered.all()
    both = pool(Domains(folders, common=True), imagenet)
    assert both.classes == (IMAGENET_CLASSNAMES[0], IMAGENET_CLASSNAMES[2])
    assert both.covered.all()


def test_each_data_set_has_its_own_classes(root: Path, clip: Clip, tmp_path: Path) -> None:
    shutil.copytree(root / "sets", tmp_path, dirs_exist_ok=True)
    (tmp_path / "a" / "photo" / "car").rename(tmp_path / "a" / "photo" / "n02085620-sports_car")
    one, other = pools(Sets({"a": "a/photo", "b": "b/photo"}), tmp_path)
    assert (one.name, other.name) == ("a", "b")
    assert one.classes == ("sports car", "truck") and other.classes == ("dog", "tree")
    assert len(one.embed(clip, False, True)) == 6


@pytest.mark.parametrize("name", ["ten", "hundred"])
def test_cifars_binary_files_are_read(root: Path, clip: Clip, name: str) -> None:
    one = pool(Cifar(name), root)
    assert one.classes == ("car", "dog", "pine tree")
    features = one.embed(clip, False, True)
    pictures = [mini.render(CLASSES[i % 3], "photo", 4210 + i // 3, 32) for i in range(9)]
    tensors = torch.stack([clip.preprocess(picture) for picture in pictures])
    torch.testing.assert_close(features.embeddings, clip.encode_image(tensors))
    assert features.labels.tolist() == [0, 1, 2] * 3
    few = pool(Cifar(name, each=1), root).embed(clip, False, True)
    assert sorted(few.labels.tolist()) == [0, 1, 2]
    shots, validation = one.draw(clip, 2, 1, 0)  # type: ignore[misc]
    everything = torch.cat([s.read(torch.arange(len(s))) for s in (shots, validation)])
    assert sorted(torch.cat([shots.labels, validation.labels]).tolist()) == [0, 0, 0, 1, 1, 1,
                                                                              2, 2, 2]  # fmt: skip
    assert len(everything.flatten(1).unique(dim=0)) == 9  # no image is in both
    assert shots.labels.bincount().tolist() == [2, 2, 2]


def test_a_damaged_or_pickled_cifar_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "ten", tmp_path / "cut")
    raw = np.fromfile(tmp_path / "cut" / "test_batch.bin", np.uint8)
    raw[:-1].tofile(tmp_path / "cut" / "test_batch.bin")
    with pytest.raises(ValueError, match="no number of records of 3073"):
        pool(Cifar("cut"), tmp_path)
    raw[0] = 3
    raw.tofile(tmp_path / "cut" / "test_batch.bin")
    with pytest.raises(ValueError, match="has label 3, and names 3 classes"):
        pool(Cifar("cut"), tmp_path)
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="the binary version of CIFAR is needed"):
        pool(Cifar("python"), tmp_path)


def test_features_need_text(root: Path) -> None:
    arrays = {"image_features": np.eye(3, 4), "labels": np.arange(3)}
    np.savez(root / "bare.npz", **arrays)
    with pytest.raises(ValueError, match="no text prototypes, so nothing to edit"):
        pool(FeatureFile("bare.npz"), root)
    np.savez(root / "text.npz", **arrays, text_features=np.eye(3, 4))
    assert pool(FeatureFile("text.npz"), root).classes == ("0", "1", "2")
    names = np.array(["crane", "dog", "crane"])  # two classes of one name stay two
    np.savez(root / "text.npz", **arrays, text_features=np.eye(3, 4), class_names=names)
    assert pool(FeatureFile("text.npz"), root).classes == ("crane", "dog", "crane")


def test_bundled_pictures_are_those_that_erase_measures_on(clip: Clip, root: Path) -> None:
    one = pool(Bundled(each=1), root)
    features = one.embed(clip, False, True)
    assert torch.equal(
        features.embeddings, embed(clip, bundled_to_report(1), quiet=True).embeddings
    )
    assert set(one.domains) == set(DOMAINS) | {"painting", "cartoon"}


def test_absent_data_give_one_line_with_where_to_put_them(root: Path) -> None:
    for data, path in (
        (Folder("pacs", where="from there"), "pacs"),
        (Folder("images", report="none/*.txt", where="from there"), "none/*.txt"),
        (Domains({"photo": "images/photo", "oil": "oil"}, where="from there"), "oil"),
        (Cifar("cifar", where="from there"), "cifar"),
    ):
        assert absent(data, root) == path
        with pytest.raises(ValueError) as caught:
            pools(data, root)
        said = str(caught.value)
        assert repr(str(root / path)) in said and "from there" in said and "\n" not in said
    assert absent(Folder("images", **LISTS), root) is None  # control


def test_other_images_have_another_fingerprint(root: Path) -> None:
    whole, some = pool(Folder("images"), root), pool(Folder("images", each=2), root)
    assert whole.fingerprint == pool(Folder("images"), root).fingerprint != some.fingerprint
