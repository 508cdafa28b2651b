"""`nsu prototypes`: a folder that says what it holds, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Result, nsu, tree

from nullspace_unlearn import clip as clips
from nullspace_unlearn.clip import projection
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.files import default_cache
from nullspace_unlearn.prototypes import cell_prototypes, nearness, pixels
from nullspace_unlearn.report import prototypes as writing

CLASSES = ("car", "dog")
TWO = ("prototypes", "--classes", ",".join(CLASSES), "--each", 2)
DOMAINS = ("photo", "sketch", "painting", "cartoon")
OURS = {"sheet.png", "features.safetensors", "prototypes.json"}


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Pictures of `TWO`, ascended once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def no_ascent(monkeypatch) -> list[int]:
    """Starting pictures in place of found ones; the sizes of the batches."""
    sizes: list[int] = []

    def stay(clip, tower, pictures, *_):
        sizes.append(len(pictures))
        return pictures

    monkeypatch.setattr(pixels, "_ascend", stay)
    return sizes


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def one_line(result: Result, message: str, code: int = 2) -> None:
    assert result.code == code, result
    assert result.out == ""
    assert result.err.startswith("nsu: ") and "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1
    assert message in result.err, result.err


def test_the_folder_holds_what_it_says(cache, tmp_path):
    """Oracle: the PNG files through the model's own preprocessing; cosines in numpy."""
    said = nsu(*TWO, "--output", "out", "--cache", cache, "--json").json
    out = tmp_path / "out"
    assert said.pop("output") == "out"
    assert json.loads((out / "prototypes.json").read_text()) == said
    pictures = {f"{d}/{c}/{i:02}.png" for d in DOMAINS for c in CLASSES for i in range(2)}
    assert files(out) == pictures | OURS
    clip = clips.load("nsu-mini", device="auto", precision="fp32")
    found = read_folder(out)  # itself an image folder
    assert (found.classes, found.domains) == (CLASSES, tuple(sorted(DOMAINS)))
    again = embed(clip, found, quiet=True)
    kept = Features.load(out / "features.safetensors")
    text = cell_prototypes(clip, CLASSES, DOMAINS, said["templates"]).numpy()
    assert len(said["cells"]) == 8
    for cell in said["cells"]:
        c, d = CLASSES.index(cell["class"]), DOMAINS.index(cell["domain"])
        assert cell["folder"] == f"{cell['domain']}/{cell['class']}"
        there = (again.labels == c) & (again.domains == found.domains.index(cell["domain"]))
        rows = again.embeddings[there].double().numpy()
        here = kept.embeddings[(kept.labels == c) & (kept.domains == d)].numpy()
        np.testing.assert_allclose(rows, here, rtol=1e-3, atol=1e-3)
        scores = rows / np.linalg.norm(rows, axis=1, keepdims=True) @ text.reshape(8, -1).T
        assert cell["cosine"] == pytest.approx(scores[:, 4 * c + d].mean(), abs=1e-4)
        assert cell["reached"] == (scores.argmax(1) == 4 * c + d).sum()
        assert cell["pictures"] == 2
    assert said["synthesis"]["each"] == 2 and said["nearness"] is None
    assert said["vocabulary"] == {"classes": list(CLASSES), "domains": {d: d for d in DOMAINS}}
    with Image.open(out / "sheet.png") as picture:
        assert picture.format == "PNG"


def test_what_is_asked_for_is_written_and_competes_with_all(cache, tmp_path):
    assert nsu(*TWO, "--output", "all", "--cache", cache, "--quiet").code == 0
    asked = ("--class", "dog", "--domain", "cartoon", "--domain", "sketch")
    said = nsu(*TWO, *asked, "--output", "some", "--cache", cache, "--json").json
    some = tmp_path / "some"
    assert files(some) == OURS | {
        f"{d}/dog/0{i}.png" for d in ("cartoon", "sketch") for i in (0, 1)
    }
    for name in files(some) - OURS:
        assert (some / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    whole = json.loads((tmp_path / "all" / "prototypes.json").read_text())["cells"]
    for cell in said["cells"]:
        assert cell in whole
    assert [(cell["class"], cell["domain"]) for cell in said["cells"]] == [
        ("dog", "sketch"), ("dog", "cartoon")
    ]  # fmt: skip
    features = Features.load(some / "features.safetensors")
    assert (features.class_names, features.domain_names) == (("dog",), ("sketch", "cartoon"))
    assert features.domains.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("called", ["drawing", "sketch"])
def test_a_domain_goes_by_its_key_or_its_word(no_ascent, called):
    words = ("--domain-word", "drawing=sketch", "--domain", called)
    said = nsu(*TWO, *words, "--output", "out", "--no-cache", "--json").json
    assert {cell["folder"] for cell in said["cells"]} == {"drawing/car", "drawing/dog"}
    known = {"photo": "photo", "painting": "painting", "cartoon": "cartoon", "drawing": "sketch"}
    assert said["vocabulary"]["domains"] == known  # in place of sketch: they would be one cell


def test_the_report_is_short_and_quiet_is_silent(cache):
    report = nsu(*TWO, "--class", "dog", "--output", "out", "--cache", cache)
    lines = report.out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [["dog", domain] for domain in DOMAINS]
    assert all("cosine 0." in line and " of 2" in line for line in lines[:4])
    assert lines[-1] == "Wrote 8 pictures and sheet.png to out"
    silent = nsu(*TWO, "--output", "out", "--cache", cache, "--overwrite", "--quiet")
    assert (silent.code, silent.out, silent.err) == (0, "", "")


def test_cells_never_reached_are_named(no_ascent):
    said = nsu(*TWO, "--output", "out", "--no-cache")
    warning = [line for line in said.out.splitlines() if "no synthesised picture" in line]
    cells = json.loads(Path("out/prototypes.json").read_text())["cells"]
    never = [f"{cell['class']}/{cell['domain']}" for cell in cells if not cell["reached"]]
    assert 1 < len(never) <= 8  # nothing was ascended
    assert len(warning) == 1 and all(name in warning[0] for name in never[:6])


def test_nearness_is_that_of_the_library(cache, photos):
    words = ("--classes", "car,dog,person", "--each", 1)
    said = nsu("prototypes", *words, "--class", "car", "--output", "out", "--against", photos,
               "--cache", cache, "--json").json["nearness"]  # fmt: skip
    assert (said["classes"], said["domains"]) == (["car", "dog"], ["photo", "sketch", "painting"])
    clip = clips.load("nsu-mini", device="auto", precision="fp32")
    assert nsu("prototypes", *words, "--output", "all", "--cache", cache, "--quiet").code == 0
    made, real = Features.load("all/features.safetensors"), embed(clip, read_folder(photos))

    def part(features: Features) -> Features:
        rows = [
            i
            for i, (c, d) in enumerate(zip(features.labels, features.domains, strict=True))
            if features.class_names[c] in said["classes"]
            and features.domain_names[d] in said["domains"]
        ]
        return Features(
            features.embeddings[rows],
            torch.tensor([said["classes"].index(features.class_names[features.labels[i]])
                          for i in rows]),
            tuple(said["classes"]),
            domains=torch.tensor([said["domains"].index(features.domain_names[features.domains[i]])
                                  for i in rows]),
            domain_names=tuple(said["domains"]),
        )  # fmt: skip

    expected = nearness.nearness(part(made), part(real)).embedding
    assert said["embedding"]["cosine"] == pytest.approx(expected.cosine, abs=1e-6)
    assert said["embedding"]["class_transfer"] == pytest.approx(expected.class_transfer)
    assert said["hidden"]["rank"] >= 1
    text = nsu("prototypes", *words, "--output", "b", "--against", photos, "--cache", cache).out
    assert "nearness of embeddings to" in text and "nearness of hidden features to" in text


def test_an_interrupted_call_leaves_its_cache_only(no_ascent, tmp_path, monkeypatch):
    stay = pixels._ascend

    def interrupted(*given):
        if len(no_ascent) == 2:
            raise KeyboardInterrupt
        return stay(*given)

    monkeypatch.setattr(pixels, "_ascend", interrupted)
    stopped = nsu(*TWO, "--output", "out", "--batch-size", 3, "--quiet")
    assert (stopped.code, stopped.out, stopped.err.strip()) == (130, "", "nsu: interrupted")
    assert default_cache() == tmp_path / "user/nullspace-unlearn/prototypes"
    assert [path.name for path in tmp_path.iterdir()] == ["user"]
    assert len(list(default_cache().iterdir())) == 6
    monkeypatch.setattr(pixels, "_ascend", stay)
    no_ascent.clear()
    assert nsu(*TWO, "--output", "out", "--batch-size", 4, "--quiet").code == 0
    assert no_ascent == [4, 4, 4]  # bounded, and only the batches where one is missing, whole
    no_ascent.clear()
    assert nsu(*TWO, "--output", "out", "--overwrite", "--no-cache", "--quiet").code == 0
    assert sum(no_ascent) == 16  # control


@pytest.mark.parametrize("when", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_folder_half_written_is_removed(no_ascent, tmp_path, monkeypatch, when):
    assert nsu(*TWO, "--output", "out", "--quiet").code == 0
    before = tree(tmp_path / "out")

    def fail(*_):
        raise when

    monkeypatch.setattr(writing, "contact_sheet", fail)
    assert nsu(*TWO, "--output", "out", "--overwrite", "--quiet").code in (2, 130)
    assert tree(tmp_path / "out") == before
    assert nsu(*TWO, "--output", "new", "--quiet").code in (2, 130)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "user"}


LONG = " ".join(["photograph"] * 6)  # and yet no more tokens than the model reads


def test_no_name_leaves_the_folder_and_none_collide(no_ascent, tmp_path):
    names = ["../../up", "/abs", ".hidden", "a/b", "a_b", "A b", "...", LONG, LONG + " a", "é"]
    names += ["日" * 2, "sheet.png", "nul", "a_b-2"]
    Path("names.txt").write_text("\n".join(names), encoding="utf-8")
    words = [f"--domain-word={name}={word}" for name, word in
             (("../d", "photo"), ("sheet.png", "sketch"), (".", "painting"))]  # fmt: skip
    outside = {p.name for p in tmp_path.parent.iterdir()}
    said = nsu("prototypes", "--classes", "names.txt", *words, "--each", 1, "--output", "in/out",
               "--json").json  # fmt: skip
    assert {p.name for p in tmp_path.parent.iterdir()} == outside
    assert {p.name for p in tmp_path.iterdir()} == {"in", "names.txt", "user"}
    out = tmp_path / "in" / "out"
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]
    folders = [cell["folder"] for cell in said["cells"]]
    assert len({folder.casefold() for folder in folders}) == len(folders) == 14 * 4
    assert files(out) == OURS | {f"{folder}/00.png" for folder in folders}
    for folder in folders:
        parts = folder.split("/")
        assert len(parts) == 2 and not any(p.startswith(".") or not p.strip() for p in parts)
        assert all(len(p.encode()) < 250 for p in parts)
    assert {"cartoon/a_b", "cartoon/sheet.png", "cartoon/é"} <= set(folders)  # nothing needless
    assert [cell["class"] for cell in said["cells"][::4]] == names  # as they were given
    found = read_folder(out)
    assert len(found.classes) == 14 and len(found.domains) == 4


ROWS = {
    "no output": ((), "Missing option '--output'"),
    "no pictures": (("--output", "o", "--each", "0"), "0 is not in the range x>=1"),
    "no batch": (("--output", "o", "--batch-size", "0"), "0 is not in the range x>=1"),
    "no seed": (("--output", "o", "--seed", "-1"), "-1 is not in the range x>=0"),
    "existing output": (("--output", "there"), "output 'there' exists; name another or pass"),
    "unknown class": (("--output", "o", "--class", "zebra"), "unknown class 'zebra'; known: car"),
    "unknown domain": (
        ("--output", "o", "--domain", "clipart"),
        "unknown domain 'clipart'; known: photo, sketch, painting, cartoon",
    ),
    "class twice": (("--output", "o", "--class", "car", "--class", "car"), "class named twice"),
    "empty class": (("--output", "o", "--class", ""), "empty class name"),
    "empty domain": (("--output", "o", "--domain", " "), "empty domain name"),
    "not in the list": (
        ("--output", "o", "--classes", "dog,cat", "--class", "car"),
        "unknown class 'car'; known: dog, cat",
    ),
    "template": (("--output", "o", "--template", "a {}"), "must hold {class} and {domain}"),
    "word": (("--output", "o", "--domain-word", "painting"), "takes KEY=VALUE"),
    "no images": (("--output", "o", "--against", "no"), "image folder 'no' is not a folder"),
    "unknown model": (("--output", "o", "--model", "nsu-mimi"), "nearest: nsu-mini"),
    "cache in a file": (("--output", "o", "--cache", "there/file"), "cannot be written"),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row, tmp_path):
    given, message = ROWS[row]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    before = tree(tmp_path)
    one_line(nsu("prototypes", *given), message)
    assert tree(tmp_path) == before


def test_images_of_other_things_are_refused_before_any_work(no_ascent, photos, tmp_path):
    given = ("--output", "out", "--against", photos, "--no-cache", "--quiet")
    other = nsu("prototypes", "--classes", "zebra,crocodile", *given)
    one_line(other, "share 0 classes and 3 domains with the vocabulary")
    shutil.copytree(photos, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "sketch" / "dog")
    given = ("--output", "out", "--against", "less", "--no-cache", "--quiet")
    one_line(nsu(*TWO, *given), "no image of 1 cells of the vocabulary, of which nearness needs")
    assert not no_ascent and not (tmp_path / "out").exists()
    assert nsu("prototypes", "--classes", "car,tree", "--each", 1, *given).code == 0  # control


@pytest.mark.parametrize("broken", ["gradient", "projection", "words"])
def test_a_model_that_cannot_do_it(broken, monkeypatch, tmp_path):
    given = TWO
    if broken == "gradient":
        original = pixels.encode
        monkeypatch.setattr(pixels, "encode", lambda *given: original(*given).detach())
        message = "passes no gradient to the pixels"
    elif broken == "projection":
        find = projection._find
        monkeypatch.setattr(
            projection, "_find", lambda model, side: None if side == "visual" else find(model, side)
        )
        message = "has no visual projection to edit"
    else:
        import pico

        given = ("prototypes", "--model", pico.write("RN50", tmp_path / "model"))
        message = "carries no class list: give --classes"
    before = tree(tmp_path)
    one_line(nsu(*given, "--output", "out", "--quiet"), message)
    assert tree(tmp_path) == before
