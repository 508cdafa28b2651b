"""`nsu erase --patch` and `nsu apply`: into a model, onto a store; refused, shared, spoken of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from shell import ROOT, Result, nsu, nsu_process, tree

from nullspace_unlearn.data import mini
from nullspace_unlearn.patch import Patch
from nullspace_unlearn.prototypes import vocabulary

WEIGHTS = "open_clip_model.safetensors"


def one_line(result: Result, message: str) -> None:
    assert (result.code, result.out) == (2, ""), result
    assert result.err.startswith("nsu: ") and len(result.err.splitlines()) == 1, result.err
    assert message in result.err, result.err


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """car.patch and dog.patch of nsu-mini, and car/out, written with the first; unmeasured."""
    root = tmp_path_factory.mktemp("patches")
    for name in ("car", "dog"):
        made = nsu("erase", "--model", mini.MODEL_FOLDER, "--class", name,
                   "--output", root / name / "out",
                   "--patch", root / f"{name}.patch", "--quiet")  # fmt: skip
        assert made == Result(0, "", "")
    deep = Patch.load(root / "car.patch")
    wide = np.ones((deep.read.shape[0] * 2, deep.read.shape[1]))
    Patch(wide, deep.write, "hidden", deep.provenance).save(root / "hidden.patch")
    return root


@pytest.mark.parametrize(
    "figures", [{"table": [1], "sentence": 5}, {"certificate": []}, {"figures": 1}]
)
def test_figures_that_are_none_are_refused(patches: Path, figures: dict, tmp_path: Path) -> None:
    made = Patch.load(patches / "car.patch")
    replace(made, figures=figures).save(tmp_path / "odd.patch")
    said = nsu("apply", tmp_path / "odd.patch", "--model", mini.MODEL_FOLDER, "--output", "out")
    one_line(said, "what 'out' says was measured is malformed")
    assert not (tmp_path / "out").exists()


def test_a_patch_makes_the_folder_again(patches: Path) -> None:
    said = nsu("apply", patches / "car.patch", "--model", mini.MODEL_FOLDER, "--output", "a/out")
    assert said.code == 0 and said.out.splitlines()[0].startswith("Applied car (rank ")
    assert tree(Path("a/out")).keys() == tree(patches / "car" / "out").keys()
    for file in Path("a/out").iterdir():
        assert file.read_bytes() == (patches / "car" / "out" / file.name).read_bytes(), file.name
    assert (patches / "car.patch").stat().st_size < Path("a/out", WEIGHTS).stat().st_size / 50


def test_several_patches_and_what_their_order_counts(patches: Path) -> None:
    files = [patches / "car.patch", patches / "dog.patch"]
    said = nsu("apply", *files, "--model", "nsu-mini", "--output", "both", "--json")
    assert said.code == 0 and len(said.json["patches"]) == 2
    (pair,) = said.json["order"]
    loud = nsu("apply", *files, "--model", "nsu-mini", "--output", "again")
    assert ("The order counts: car before dog" in loud.out) == pair["matters"]
    other = nsu("apply", *files[::-1], "--model", "nsu-mini", "--output", "swapped", "--json")
    assert other.json["order"][0]["share"] == pytest.approx(pair["share"])
    one, two = (load_file(Path(name, WEIGHTS))["visual.proj"] for name in ("both", "swapped"))
    assert pair["matters"] == (not one.allclose(two, atol=1e-5))
    assert nsu("revert", "both", "no", "--output", "x").code == 2


def test_other_weights_are_refused(patches: Path) -> None:
    shutil.copytree(mini.MODEL_FOLDER, "other")
    state = load_file(Path("other", WEIGHTS))
    state["visual.conv1.weight"][0, 0, 0, 0] += 1
    save_file(state, Path("other", WEIGHTS))
    refused = nsu("apply", patches / "car.patch", "--model", "other", "--output", "out")
    one_line(refused, "car.patch' is for other weights (model) than those of other: "
                      "visual.conv1.weight differs")  # fmt: skip
    edited = patches / "car" / "out"
    one_line(nsu("apply", patches / "car.patch", "--model", edited, "--output", "out"),
             "visual.proj differs")  # fmt: skip
    assert not Path("out").exists()


def test_a_store(patches: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float16)
    rows /= np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True).astype(np.float16)
    np.save("a.npy", rows)
    said = nsu("apply", patches / "car.patch", "--embeddings", "a.npy", "--output", "b.npy")
    assert said.code == 0 and "300 embeddings of images, 300 of them of length 1" in said.out
    assert said.err == ""  # bars are for terminals
    patch, out = Patch.load(patches / "car.patch"), np.load("b.npy")
    wanted = rows.astype(np.float64) @ (np.eye(64) - patch.read @ patch.write.T)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(out, wanted, rtol=2e-3, atol=1e-6)
    assert not np.allclose(rows, wanted, atol=1e-2)
    assert Path("b.npy").stat().st_size == Path("a.npy").stat().st_size
    rows[7, 3] = np.nan
    np.save("nan.npy", rows)
    bad = ("apply", patches / "car.patch", "--embeddings", "nan.npy", "--output", "c.npy")
    one_line(nsu(*bad, "--quiet"), "1 of 300 rows hold NaN or Inf (nan.npy row 7)")
    assert not Path("c.npy").exists() and not Path("c.npy.parts").exists()
    kept = nsu(*bad, "--nan", "keep", "--json")
    assert kept.json["nan_rows"] == 1 and np.isnan(np.load("c.npy")[7, 3])


def test_what_is_refused(patches: Path) -> None:
    np.save("a.npy", np.ones((3, 64), np.float32))
    np.save("wide.npy", np.ones((3, 65), np.float32))
    car = ("apply", patches / "car.patch")
    for arguments, message in (
        ((*car, "--output", "o"), "give --model or --embeddings"),
        ((*car, "--model", "nsu-mini", "--embeddings", "a.npy", "--output", "o"), "give --model"),
        ((*car, "--embeddings", "wide.npy", "--output", "o"), "vectors of 65 dimensions"),
        ((*car, "--embeddings", "a.npy", "--output", "o", "--undo", "u"), "--undo is for --model"),
        (("apply", patches / "hidden.patch", "--embeddings", "a.npy", "--output", "o"),
         "reads the hidden feature, which a store of embeddings does not hold"),
        (("apply", "a.npy", "--embeddings", "a.npy", "--output", "o"), "is not a saved edit"),
        (("apply", patches / "no.patch", "--model", "nsu-mini", "--output", "o"), "saved edit"),
        (("erase", "--class", "car", "--output", "o", "--patch", "o/p"), "is inside the output"),
    ):  # fmt: skip
        one_line(nsu(*arguments), message)
    assert sorted(p.name for p in Path().iterdir()) == ["a.npy", "wide.npy"]


def test_stores_need_no_torch(patches: Path) -> None:
    np.save("a.npy", np.ones((3, 64), np.float32))
    code = """import atexit, sys
atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules))
main()"""
    car = ("apply", patches / "car.patch")
    store = nsu_process(*car, "--embeddings", "a.npy", "--output", "o", "--quiet", code=code)
    assert (store.code, store.out) == (0, "False True\n"), store


@pytest.mark.slow
def test_processes_share_a_store(patches: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float16)
    Path("in").mkdir()
    for name, some in (("a", rows), ("b", rows[:70])):
        np.save(f"in/{name}.npy", some)
    car = ("apply", patches / "car.patch", "--embeddings", "in")
    assert nsu(*car, "--output", "one", "--quiet").code == 0
    script = """
from nullspace_unlearn.cli import main
from nullspace_unlearn.stores import arrays
arrays._UNIT = 4096
main()
"""
    (tmp_path / "script.py").write_text(script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "script.py", *car, "--output", "two"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote two") == 1
    for name in "ab":
        assert Path("two", f"{name}.npy").read_bytes() == Path("one", f"{name}.npy").read_bytes()
    assert sorted(p.name for p in Path().iterdir()) == ["in", "one", "script.py", "two"]


def test_diff(patches: Path) -> None:
    original, edited = mini.MODEL_FOLDER, patches / "car" / "out"
    said = nsu("diff", original, edited)
    assert said.code == 0 and said.out.startswith("1 of 122 tensors differ.\n  visual.proj [")
    assert "as an edit of the embedding" in said.out and "looks for car (+" in said.out
    assert "names whose score moves most: car " in said.out
    told = nsu("diff", original, edited, "--classes", "car,dog", "--top", "1", "--json").json
    assert told["changed"][0]["rank"] == len(Patch.load(patches / "car.patch").read.T)
    assert len(told["projections"][0]["directions"]) == 1 and not told["same"]
    assert nsu("diff", original, original).out.startswith("The same: all 122 tensors")
    one_line(nsu("diff", original, "no"), "unknown model 'no'")


def test_diff_leaves_out_names_that_the_model_cannot_read(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in mini.MODEL_FOLDER.iterdir():
        if file.name != "vocabulary.json":
            (bare / file.name).symlink_to(file)
    long = " ".join(["car"] * 100)
    monkeypatch.setattr(vocabulary, "imagenet_names", lambda: ("car", "dog", long))
    told = nsu("diff", bare, patches / "car" / "out")
    assert told.code == 0 and "car" in told.out and "car car" not in told.out
    given = nsu("diff", bare, patches / "car" / "out", "--classes", f"car,{long}")
    assert given.code == 2 and "cut" in given.err  # control: a name of the user's own is refused
