"""`nsu embed`: features once, read by the other commands; stopped, shared, and of bad input."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shell import ROOT, Result, nsu, nsu_process, tree

from nullspace_unlearn.data import mini
from nullspace_unlearn.features import Features
from nullspace_unlearn.features import file as embedding
from nullspace_unlearn.features.features import file_header

WEIGHTS = "open_clip_model.safetensors"


def one_line(result: Result, message: str, code: int = 2) -> None:
    assert (result.code, result.out) == (code, ""), result
    assert result.err.startswith("nsu: ") and len(result.err.splitlines()) == 1, result.err
    assert message in result.err and "Traceback" not in result.err, result.err


@pytest.fixture(scope="session")
def embedded(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the photos, 24 images in parts of 16."""
    path = tmp_path_factory.mktemp("embedded") / "features.safetensors"
    model = ("--model", mini.MODEL_FOLDER)
    request = ("embed", *model, "--data", photos, "--output", path, "--batch-size", "2")
    assert nsu(*request, "--quiet") == Result(0, "", "")
    return path


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with one number changed."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(mini.MODEL_FOLDER, folder)
    state = load_file(folder / WEIGHTS)
    state["visual.proj"][0, 0] += 1
    save_file(state, folder / WEIGHTS)
    return folder


def test_the_other_commands_read_it(embedded: Path, photos: Path, other: Path) -> None:
    for command in (
        ("evaluate", "nsu-mini"),
        ("erase", "--class", "car", "--output", "out", "--overwrite"),
        ("erase", "--class", "car", "--domain", "sketch", "--space", "hidden", "--prototypes",
         "closed", "--output", "out", "--overwrite"),
    ):  # fmt: skip
        read, again = (nsu(*command, "--data", data, "--json") for data in (embedded, photos))
        assert read.code == again.code == 0, (read, again)
        for key in ("metrics", "accuracy", "count", "figures"):
            assert read.json.get(key) == again.json.get(key)
    hashes = [Features.load(embedded).provenance["made_with"]["weights"][:12]]
    assert nsu("embed", "--model", other, "--data", photos, "--output", "other").code == 0
    hashes.append(Features.load("other").provenance["made_with"]["weights"][:12])
    for command, data in (
        (("evaluate", "nsu-mini"), "other"),
        (("evaluate", other), embedded),
        (("erase", "--class", "car"), "other"),
    ):
        result = nsu(*command, "--data", data)
        one_line(result, "they are not of this model")
        assert hashes[0] != hashes[1] and all(one in result.err for one in hashes)
    assert nsu("evaluate", other, "--data", "other").code == 0  # control


def test_what_it_says(photos: Path) -> None:
    said = nsu("embed", "--data", photos, "--output", "a", "--json")
    made = Features.load("a")
    assert said.code == 0 and said.err == "" and made.hidden is not None
    assert said.json["images"] == len(made) == 24 and said.json["width"] == made.hidden.shape[1]
    assert said.json["provenance"] == dict(made.provenance)
    assert nsu("embed", "--data", photos, "--output", "b", "--quiet", "--no-hidden").out == ""
    bare = Features.load("b")
    assert bare.hidden is None and bare.domain_names == ("painting", "photo", "sketch")
    assert torch.allclose(bare.embeddings, made.embeddings, atol=1e-5)
    one_line(nsu("embed", "--data", photos, "--output", "a"), "output 'a' exists")
    loud = nsu("embed", "--data", photos, "--output", "a", "--overwrite")
    assert loud.out.startswith("Wrote a: 24 images of 4 classes in 3 domains, embeddings [24, 64]")
    assert loud.err == ""  # no bar where there is no terminal
    result = nsu("embed", "--data", photos, "--output", "a.NPZ")
    one_line(result, "written as safetensors, not as .npz: name it 'a.safetensors'")
    assert sorted(p.name for p in Path().iterdir()) == ["a", "b"]


def test_the_bundled_pictures() -> None:
    assert nsu("embed", "--data", "nsu-mini", "--output", "a", "--json").json["images"] == 96
    said = Features.load("a").provenance
    assert said["made_with"]["weights"] and "bundled" in said["images"]
    one, other = (nsu("evaluate", "nsu-mini", "--data", d, "--json") for d in ("a", "nsu-mini"))
    assert one.json["accuracy"] == other.json["accuracy"]


def test_shards_are_what_their_images_are(photos: Path) -> None:
    classes = sorted(p.name for p in (photos / "photo").iterdir())
    for domain in photos.iterdir():
        Path("shards", domain.name).mkdir(parents=True)
        with tarfile.open(Path("shards", domain.name, "0.tar"), "w") as tar:
            for i, file in enumerate(sorted(domain.rglob("*.png"))):
                Path("label").write_text(str(classes.index(file.parent.name)))
                tar.add(file, f"{i}.png")
                tar.add("label", f"{i}.cls")
    Path("shards/classnames.txt").write_text("\n".join(classes))
    erase = ("erase", "--class", "car", "--domain", "sketch", "--output", "out", "--overwrite")
    for command in (
        ("evaluate", "nsu-mini"),
        # Prompts alone: no pictures are drawn.
        (*erase, "--method", "gated", "--prototypes", "text"),
    ):
        one, other = (nsu(*command, "--data", d, "--json") for d in ("shards", photos))
        assert one.code == 0, one
        for key in ("accuracy", "count", "figures"):
            assert one.json.get(key) == other.json.get(key)
    for data, name in (("shards", "a"), (photos, "b"), ("shards/photo", "flat")):
        assert nsu("embed", "--data", data, "--output", name).code == 0
    assert torch.equal(Features.load("a").embeddings, Features.load("b").embeddings)
    # Samples of no domain: a class everywhere can be forgotten, one in some domains not.
    for data in ("shards/photo", "flat"):
        request = ("erase", "--class", "car", "--data", data, "--output", "out", "--overwrite")
        assert nsu(*request, "--method", "nullspace", "--prototypes", "closed").code == 0
        result = nsu(*request, "--domain", "sketch", "--json")
        one_line(result, "unknown domain 'sketch'; known: all")
    one_line(nsu("embed", "--data", "shards/photo/{0..1}.tar", "--output", "c"), "1 of 2 shards")
    listed = ("--list", "label")
    one_line(nsu("evaluate", "nsu-mini", "--data", "shards", *listed), "and --data is shards")
    Path("shards/photo/0.tar").write_bytes(Path("shards/photo/0.tar").read_bytes()[:5000])
    one_line(nsu("evaluate", "nsu-mini", "--data", "shards"), "cannot be used: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Missing option '--output'"),
        (("--output", "file"), "output 'file' exists"),
        (("--output", "file/below"), "cannot be written"),
        (("--output", "folder", "--overwrite"), "output 'folder' is a folder"),
        (("--output", "a", "--data", "no"), "image folder 'no' is not a folder"),
        (("--output", "a", "--data", "no.tar"), "1 of 1 shards 'no.tar' are not there"),
        (("--output", "a", "--data", "file"), "is not a feature file"),
        (("--output", "a", "--model", "ViT-B-32-quickgelu-x"), "unknown model"),
    ],
)
def test_bad_input(options: tuple[str, ...], message: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    one_line(nsu("embed", "--data", photos, *options, "--json"), message)
    assert tree(tmp_path) == before


def test_features_of_features(embedded: Path, tmp_path: Path) -> None:
    one_line(nsu("embed", "--data", embedded, "--output", "a"), "holds features already")


GOOD: dict[str, Any] = {
    "embeddings": torch.randn(6, 64),
    "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
}
NAN = torch.randn(6, 64)
NAN[3, 5] = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": torch.randn(6)}, "embeddings must be [n, dim], got [6]"),
        ({"embeddings": torch.randn(6, 8)}, "have 8 dimensions and the model 64"),
        ({"embeddings": NAN}, "got NaN or Inf, first in row 3"),
        ({"hidden": torch.randn(5, 128)}, "hidden must be [6, dim], got [5, 128]"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "labels must be from 0 to 2, got 0 to 3"),
        ({"labels": torch.tensor([0, 1, -2, 1, 0, 0])}, "labels must be from 0 to 2, got -2 to 1"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "labels must be [6], got [5]"),
        ({"other": torch.zeros(5)}, "unexpected keyword argument 'other'"),
    ],
)
def test_a_bad_feature_file(changes: dict[str, torch.Tensor], message: str) -> None:
    header = file_header(("car", "dog", "tree"), (), {})
    save_file(GOOD, "good", metadata=header)
    assert nsu("evaluate", "nsu-mini", "--data", "good", "--quiet").code == 0  # control
    save_file(GOOD | changes, "bad", metadata=header)
    one_line(nsu("evaluate", "nsu-mini", "--data", "bad"), message)


def test_a_half_written_file(embedded: Path) -> None:
    data = embedded.read_bytes()
    for part in (0.01, 0.5, 0.999):
        Path("half").write_bytes(data[: int(len(data) * part)])
        one_line(nsu("evaluate", "nsu-mini", "--data", "half"), "half is not a feature file")


def test_a_full_disk(
    embedded: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = embedding.write_sealed

    def full(folder: Path, stem: str, *rest: Any) -> Path:
        if stem == "1":
            raise OSError(errno.ENOSPC, "No space left on device", "disk")
        return original(folder, stem, *rest)

    request = ("embed", "--model", mini.MODEL_FOLDER, "--data", photos, "--output", "a")
    request = (*request, "--batch-size", "2", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_sealed", full)
        one_line(nsu(*request), "No space left on device: disk; 1 of 2 parts are done and kept")
    one_line(nsu(*request, "--no-hidden"), "parts of another job (hidden: true, now false)")
    assert nsu(*request) == Result(0, "", "")
    assert Path("a").read_bytes() == embedded.read_bytes()


@pytest.mark.slow
def test_a_disk_that_fills_up(embedded: Path, photos: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))  # a part is 13,000

    request = ("embed", "--model", mini.MODEL_FOLDER, "--data", photos, "--output", "a")
    request = (*request, "--batch-size", "2", "--quiet")
    message = "2 of 2 parts are done and kept, and the same command goes on from there"
    one_line(nsu_process(*request, cwd=tmp_path, preexec_fn=limit), message)
    assert nsu(*request) == Result(0, "", "")
    assert (tmp_path / "a").read_bytes() == embedded.read_bytes()


# Under torchrun.


def torchrun(*arguments: object, code: str = "", cwd: Path) -> subprocess.CompletedProcess[str]:
    script = cwd / "script.py"
    script.write_text(f"from nullspace_unlearn.cli import main\n{code}\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What we said, without what torchrun adds."""
    return [line for line in done.stderr.splitlines() if line.startswith("nsu:")]


@pytest.mark.slow
def test_two_processes_write_the_same_file(embedded: Path, photos: Path, tmp_path: Path) -> None:
    request = ("embed", "--model", mini.MODEL_FOLDER, "--data", photos, "--output", "a")
    done = torchrun(*request, "--batch-size", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count('"output"') == 1, done
    assert (tmp_path / "a").read_bytes() == embedded.read_bytes()
    bad = torchrun(*request, cwd=tmp_path)
    assert bad.returncode != 0
    assert ours(bad)[0] == "nsu: output 'a' exists; name another or pass --overwrite"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies(embedded: Path, photos: Path, tmp_path: Path, rank: int) -> None:
    script = f"""
import os
from nullspace_unlearn.features import file as embedding
original = embedding._embed_part
def die(parts, part, batches):
    if os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    original(parts, part, batches)
embedding._embed_part = die
"""
    request = ("embed", "--model", mini.MODEL_FOLDER, "--data", photos, "--output", "a")
    request = (*request, "--batch-size", "2", "--quiet")
    done = torchrun(*request, code=script, cwd=tmp_path)
    assert done.returncode != 0 and not (tmp_path / "a").exists()
    (line,) = ours(done)
    assert "a worker process died or was stopped; what is done is kept" in line
    assert (tmp_path / "a.parts/job.json").is_file()
    assert nsu(*request) == Result(0, "", "")
    assert (tmp_path / "a").read_bytes() == embedded.read_bytes()


@pytest.mark.slow
def test_a_process_that_fails(photos: Path, tmp_path: Path) -> None:
    script = """
import os
from nullspace_unlearn.features import file as embedding
def fail(parts, part, batches):
    if os.environ["RANK"] == "1":
        raise ValueError("it failed here")
embedding._embed_part = fail
"""
    request = ("embed", "--data", photos, "--output", "a", "--quiet")
    done = torchrun(*request, code=script, cwd=tmp_path)
    assert done.returncode != 0 and "it failed here" in ours(done)[0]
