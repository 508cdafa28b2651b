"""Every command takes every kind of data, and reports on nothing that it learned from."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shell import nsu

from nullspace_unlearn.data import mini

NAMES = ("car", "dog", "car", "tree")
CELL = ("--class", "car", "--domain", "sketch")
KNOWN = ("--classes", "car,dog,tree,truck")


def one_line(result, *parts: str) -> None:
    assert result.code == 2 and result.out == ""
    (line,) = [line for line in result.err.splitlines() if "embedding" not in line]
    assert all(part in line for part in parts), line


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP_benchmark's layout, two classes of one name: cars by photo, and as sketches."""
    root = tmp_path_factory.mktemp("twice")
    with tarfile.open(root / "0.tar", "w") as tar:
        for label, name in enumerate(NAMES):
            for i in range(4):
                buffer = io.BytesIO()
                domain = "sketch" if label == 2 else "photo"
                mini.render(name, domain, 6_000_000 + i).save(buffer, "PNG")
                for suffix, data in (("png", buffer.getvalue()), ("cls", b"%d" % label)):
                    member = tarfile.TarInfo(f"{label}{i}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (root / "classnames.txt").write_text("\n".join(NAMES))
    (root / "zeroshot_classification_templates.txt").write_text("a drawing of a {c}.\n")
    return root


def test_erase_reports_on_nothing_that_it_learned_from(photos, tmp_path):
    given = ("erase", *CELL, *KNOWN, "--images", photos, "--shots", 1)
    said = nsu(*given, "--data", photos, "--output", "a", "--json").json
    assert said["left_out"] == 12 and sum(map(sum, said["before"]["count"])) == 12
    files = said["prototypes"]["files"]
    rest = {p.relative_to(photos).as_posix() for p in photos.rglob("*.png")} - set(files)
    (tmp_path / "rest.txt").write_text("\n".join(sorted(rest)))
    told = nsu(*given, "--data", photos, "--list", "rest.txt", "--output", "b", "--json").json
    assert told["left_out"] == 0 and told["after"] == said["after"]  # control: told apart by hand
    copy = shutil.copytree(photos, tmp_path / "copy")  # the same bytes elsewhere
    text = nsu(*given, "--data", copy, "--output", "c").out
    assert "Left out of these figures: 12 images that the edit was made of." in text
    result = nsu("erase", *CELL, *KNOWN, "--images", photos, "--data", copy, "--output", "d")
    one_line(result, "all 24 images to report on are also what is learned from")
    assert not (tmp_path / "d").exists()


def test_features_of_what_was_learned_from_are_left_out_too(photos, tmp_path):
    assert nsu("embed", "--data", photos, "--output", "f", "--quiet").code == 0
    given = ("erase", *CELL, *KNOWN, "--images", photos, "--json")
    said = [
        nsu(*given, "--shots", 1, "--data", data, "--output", name).json
        for data, name in ((photos, "a"), ("f", "b"))
    ]
    assert [one["left_out"] for one in said] == [12, 12]
    assert said[0]["before"] == said[1]["before"] and said[0]["after"] == said[1]["after"]
    one_line(nsu(*given, "--data", "f", "--output", "c"), "all 24 images to report on are also")
    apart = mini.write_images(tmp_path / "others", ["car", "truck", "dog", "tree"],
                              ["photo", "sketch", "painting"], range(7002, 7004))  # fmt: skip
    assert apart == 24  # control: other images of the same cells
    given = ("erase", *CELL, *KNOWN, "--images", "others", "--data", "f", "--output", "d", "--json")
    assert nsu(*given).json["left_out"] == 0


def test_bundled_pictures_are_never_both(tmp_path):
    given = ("erase", *CELL, "--images", "nsu-mini", "--json")
    one_line(nsu(*given, "--output", "a"), "all 96 images to report on are also")
    assert nsu(*given, "--seed", 1, "--output", "b").json["left_out"] == 0


def test_two_classes_of_one_name_stay_two_and_go_together(twice, tmp_path):
    data = ("--data", twice, "--json")
    measured = nsu("evaluate", "nsu-mini", *data)
    assert "several classes are called car: they stay or go together" in measured.err
    assert measured.json["classes"] == list(NAMES)
    assert measured.json["templates"] == ["a drawing of a {class}."]  # which come along
    said = nsu("erase", "--class", "car", *data, "--output", "a").json
    assert said["forgotten"] == [[True], [False], [True], [False]]
    shots = ("--shots", 1, "--validation", 1, "--epochs", 1, "--output", "b")
    trained = nsu("train", "ascent", "--class", "car", *data, *shots).json
    assert trained["forgotten"] == said["forgotten"]
    rows = nsu("sweep", "--class", "each", "--method", "hull", *data, "--output", "c").json
    assert rows["requests"] == 3  # car once
    names = ("erase", "--class", "car", "--classes", ",".join(NAMES), *data, "--output", "d")
    listed = nsu(*names)
    assert listed.json["kept"] == ["dog", "tree"] and "stay or go together" in listed.err


def test_folder_names_become_words_in_every_command(photos, tmp_path):
    root = tmp_path / "data"
    for old, new in (("car", "n02958343"), ("dog", "n02085620-guide_dog"), ("tree", "OakTree")):
        for domain in ("photo", "sketch"):
            shutil.copytree(photos / domain / old, root / domain / new)
    names = ["Oak Tree", "guide dog", "car"]  # in the folders' order
    result = nsu("evaluate", "nsu-mini", "--data", root, "--json")
    assert result.json["classes"] == names
    assert "OakTree as 'Oak Tree', n02085620-guide_dog as 'guide dog', n02958343" in result.err
    word = ("--class-word", "OakTree=tree", "--data", root, "--json")
    assert nsu("evaluate", "nsu-mini", *word).json["classes"] == ["tree", *names[1:]]
    given = ("--class", "car", "--shots", 1, "--validation", 0, "--epochs", 1, "--output", "b")
    assert nsu("train", "ascent", *given, *word).json["after"]["classes"] == ["tree", *names[1:]]
    made = nsu("embed", *word, "--output", "f").json
    assert made["classes"] == ["tree", *names[1:]]
    (root / "photo" / "OakTree").rename(root / "photo" / "n99999999")
    one_line(nsu("embed", "--data", root, "--output", "g"), "--class-word n99999999=WORD")


def test_parts_of_one_data_set_are_no_domains(photos, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(photos / "photo", tmp_path / "set" / part)
    result = nsu("evaluate", "nsu-mini", "--data", "set")
    one_line(result, "test, train in 'set' are parts of the data, not a domain", "'set/test'")
    said = nsu("evaluate", "nsu-mini", "--data", "set/test", "--json").json
    assert said["domains"] == ["all"] and said["count"] == [[2]] * 4


def test_a_tar_beside_images_leaves_them_images(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "copy")
    (copy / "backup.tar").write_bytes(b"")
    result = nsu("embed", "--data", copy, "--output", "f", "--json")
    assert result.json["images"] == 24 and "1 .tar files beside the images" in result.err


def test_folders_of_classes_are_named_one_by_one(photos):
    data = ",".join(f"{domain}={photos / domain}" for domain in ("photo", "sketch"))
    said = nsu("evaluate", "nsu-mini", "--data", data, "--json").json
    assert said["domains"] == ["photo", "sketch"] and said["count"] == [[2, 2]] * 4


def test_features_of_images_do_not_show_them(photos, tmp_path):
    nsu("embed", "--data", photos, "--output", "f")
    arrays = {"image_features": np.eye(4, 64), "labels": np.arange(4)}
    np.savez("zeros.npz", **{**arrays, "image_features": np.eye(4, 64) * [[1], [1], [1], [0]]})
    one_line(nsu("erase", *CELL, "--images", "f"), "--images are looked at, and a feature file")
    one_line(nsu("prototypes", "--against", "f", "--output", "p"), "--against are images")
    given = ("evaluate", "nsu-mini", "--data", "zeros.npz", "--classes", "a,b,c,d", "--json")
    result = nsu(*given)
    assert "1 rows of zeros are left out" in result.err
    assert json.loads(result.out)["count"] == [[1], [1], [1], [0]]
