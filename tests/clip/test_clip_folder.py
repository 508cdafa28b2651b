"""The output folder: stock open_clip gets our features, and undo brings back every byte."""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pico
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from killed import CHANGES, forked, killed_at, posix
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nullspace_unlearn.clip import Clip, describe, folder, load, read_folder, revert, tensors
from nullspace_unlearn.data import mini
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.files import OutputExists, claimed
from nullspace_unlearn.fingerprint import file_sha256
from nullspace_unlearn.header import read_header

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHARED = ROOT.parent / "shared" / "models"
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


def same_file(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def raw(path: Path) -> dict[str, tuple[str, bytes]]:
    """dtype and bytes of every tensor, read without our code."""
    with safe_open(path, framework="pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}
    return {
        key: (str(value.dtype), value.reshape(-1).view(torch.uint8).numpy().tobytes())
        for key, value in held.items()
    }


def fold_both(clip: Clip, edit: Edit) -> Clip:
    folded = clip.fold(edit)
    return folded.fold(edit, "text") if describe(clip.model)["text"] else folded


def test_stock_open_clip_computes_our_features(clip_of, random_edit, tmp_path):
    """Oracle: open_clip in a process that never imports this package, for every family."""
    folded = {}
    for name in pico.FAMILIES:
        clip = fold_both(clip_of(name), random_edit(clip_of(name).dim))
        folded[str(clip.save(tmp_path / name))] = clip
    out = tmp_path / "features.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "stock.py", out, *folded]
    subprocess.run(command, env=environment, check=True)
    picture = Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3))
    with np.load(out) as stock:
        for folder, clip in folded.items():
            ours = {
                "image": clip.encode_image(pico.images()),
                "text": clip.encode_text(pico.PROMPTS),
                "picture": clip.preprocess(picture),
            }
            for kind, value in ours.items():
                assert np.allclose(stock[f"{folder} {kind}"], value, rtol=1e-4, atol=1e-5), folder
            untouched = clip_of(Path(folder).name).encode_image(pico.images())  # control
            assert not np.allclose(stock[f"{folder} image"], untouched, atol=1e-2), folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_without_an_edit_the_weights_file_is_the_same(dtype, folder_of, tmp_path):
    source = folder_of("ViT-B-32", dtype)
    clip = load(str(source), device="cpu")
    nothing = Edit(torch.zeros(clip.dim, 1), torch.zeros(clip.dim, 1))
    saved = clip.fold(nothing).save(tmp_path / "same")
    assert same_file(saved / WEIGHTS, source / WEIGHTS)
    assert same_file(saved / CONFIG, source / CONFIG)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_only_the_edited_tensors_differ(name, dtype, folder_of, random_edit, tmp_path):
    source = folder_of(name, dtype)
    clip = load(str(source), device="cpu")
    edited = clip.fold(random_edit(clip.dim))
    saved = edited.save(tmp_path / "edited")
    before, after = raw(source / WEIGHTS), raw(saved / WEIGHTS)
    changed = {change.key: change.edited for change in edited.changes}
    assert after.keys() == before.keys() | changed.keys()
    assert after.keys() == edited.model.state_dict().keys()
    for key, value in after.items():
        if key in changed:
            assert value == ("torch.float32", changed[key].numpy().tobytes())
            assert value != before.get(key)
        else:
            assert value == before[key]
    with safe_open(saved / WEIGHTS, "pt") as new, safe_open(source / WEIGHTS, "pt") as old:
        assert new.metadata() == old.metadata()


def test_half_precision_weights_do_not_bring_the_direction_back(folder_of, tmp_path):
    clip = load(str(folder_of("ViT-B-32", torch.float16)), device="cpu", precision="fp16")
    unit = torch.nn.functional.normalize(
        torch.randn(clip.dim, 1, generator=torch.Generator().manual_seed(0)), dim=0
    )
    saved = clip.fold(Edit(unit, unit)).save(tmp_path / "edited")
    weight = load_file(saved / WEIGHTS)["visual.proj"]
    left = (weight.double() @ unit.double()).norm() / weight.norm()
    rounded = (weight.half().double() @ unit.double()).norm() / weight.norm()
    assert left < 1e-7
    assert rounded > 1e-5  # control


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_undo_brings_every_byte_back(name, folder_of, random_edit, tmp_path):
    source = folder_of(name, torch.float16)
    clip = load(str(source), device="cpu")
    edited = fold_both(clip, random_edit(clip.dim))
    edited.save(tmp_path / "edited", undo=tmp_path / "undo")
    assert not same_file(tmp_path / "edited" / WEIGHTS, source / WEIGHTS)
    restored = revert(tmp_path / "edited", tmp_path / "undo", tmp_path / "restored")
    for file in source.iterdir():
        assert same_file(restored / file.name, file), file.name
    assert {file.name for file in restored.iterdir()} == {file.name for file in source.iterdir()}
    # Only what was changed is in the undo file, in the dtype it had.
    originals, before = raw(tmp_path / "undo"), raw(source / WEIGHTS)
    assert originals == {c.key: before[c.key] for c in edited.changes if c.key in before}


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP"])
def test_undo_may_replace_the_folder_itself(name, clip_of, folder_of, random_edit, tmp_path):
    clip = clip_of(name)
    saved = clip.fold(random_edit(clip.dim)).save(tmp_path / "m", undo=tmp_path / "undo")
    with pytest.raises(OutputExists):
        revert(saved, tmp_path / "undo", saved)
    revert(saved, tmp_path / "undo", saved, overwrite=True)
    assert same_file(saved / WEIGHTS, folder_of(name) / WEIGHTS)


@pytest.mark.parametrize("name", ["ViT-B-32", "mt5-base-ViT-B-32"])
def test_other_formats_become_safetensors(name, folder_of, random_edit, tmp_path):
    """A state_dict in torch's format: what is saved is the in-memory model."""
    source = Path(shutil.copytree(folder_of(name), tmp_path / "source"))
    state = load_file(source / WEIGHTS)
    (source / WEIGHTS).unlink()
    torch.save(state, source / "open_clip_pytorch_model.bin")
    clip = load(str(source), device="cpu")
    edited = clip.fold(random_edit(clip.dim))
    edited.save(tmp_path / "edited", undo=tmp_path / "undo")
    stock = open_clip.create_model(f"local-dir:{tmp_path / 'edited'}").eval()
    with torch.no_grad():
        assert torch.equal(stock.encode_image(pico.images()), edited.encode_image(pico.images()))
    restored = load_file(revert(tmp_path / "edited", tmp_path / "undo", tmp_path / "r") / WEIGHTS)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[key], value) for key, value in state.items())


def test_a_model_trained_in_memory_is_saved_as_it_is(folder_of, tmp_path):
    clip = load(str(folder_of("ViT-B-32")), device="cpu")
    with torch.no_grad():
        clip.model.logit_scale.add_(1.0)
    saved = clip.save(tmp_path / "trained")
    assert torch.equal(load_file(saved / WEIGHTS)["logit_scale"], clip.model.logit_scale)


def test_an_edited_model_trained_further_is_saved_and_edited_as_it_is(
    folder_of, random_edit, tmp_path
):
    clip = load(folder_of("RN50"), device="cpu")
    edited = clip.fold(random_edit(clip.dim))
    key = "visual.attnpool.c_proj.weight"
    with torch.no_grad():
        edited.model.get_parameter(key).mul_(2.0)
    saved = edited.save(tmp_path / "trained")
    assert torch.equal(load_file(saved / WEIGHTS)[key], edited.model.get_parameter(key))
    again = edited.fold(random_edit(clip.dim, seed=1))
    expected = random_edit(clip.dim, seed=1).apply(edited.encode_image(pico.images()))
    assert torch.allclose(again.encode_image(pico.images()), expected, rtol=1e-4, atol=1e-5)


def test_tensors_that_share_memory_are_written_apart():
    one = torch.arange(6.0)
    apart = folder._separate({"a": one, "b": one, "c": one.view(2, 3).T})
    pointers = {value.untyped_storage().data_ptr() for value in apart.values()}
    assert len(pointers) == 3
    assert torch.equal(apart["c"], one.view(2, 3).T)
    assert all(value.is_contiguous() for value in apart.values())


def test_the_folder_explains_itself_and_holds_no_way_back(clip_of, random_edit, tmp_path):
    report, request = {"acc1": 0.5}, {"classes": ["café"]}
    clip = clip_of("roberta-ViT-B-32")
    edit = random_edit(clip.dim)
    edit = replace(edit, provenance={**edit.provenance, "request": request})
    edited = clip.fold(edit)
    saved = edited.save(tmp_path / "edited", report=report, undo=tmp_path / "undo.safetensors")
    said = read_folder(saved)
    assert (said.folder, said.recipe, said.report) == (saved, edited.history.to_json(), report)
    assert said.recipe["model"] == clip.source.name and len(said.recipe["edits"]) == 1
    card = (saved / "README.md").read_text()
    assert "library_name: open_clip" in card
    assert "pipeline_tag: zero-shot-image-classification" in card
    assert "base_model: roberta-ViT-B-32-float32" in card
    assert "`visual.proj` (visual side): random" in card
    assert "- café: everywhere" in card
    assert "no longer" not in card  # which nothing has shown
    assert str(tmp_path) not in card
    tokenizer = {file.name for file in clip.source.folder.iterdir()} - {WEIGHTS, CONFIG}
    assert {file.name for file in saved.iterdir()} == {
        WEIGHTS,
        CONFIG,
        "README.md",
        "recipe.yaml",
        "report.json",
        *tokenizer,
    }
    assert {"tokenizer.json", "tokenizer_config.json"} <= tokenizer
    assert raw(saved / WEIGHTS).keys() == clip.model.state_dict().keys()
    assert raw(saved / WEIGHTS)["visual.proj"] != raw(tmp_path / "undo.safetensors")["visual.proj"]
    assert clip.save(tmp_path / "own", card="mine") / "README.md"
    assert (tmp_path / "own" / "README.md").read_text() == "mine"


def test_the_vocabulary_travels(folder_of, random_edit, tmp_path):
    source = Path(shutil.copytree(folder_of("ViT-B-32"), tmp_path / "source"))
    (source / "vocabulary.json").write_text('{"classes": ["cat"]}')
    clip = load(str(source), device="cpu")
    saved = clip.fold(random_edit(clip.dim)).save(tmp_path / "edited", undo=tmp_path / "undo")
    assert same_file(saved / "vocabulary.json", source / "vocabulary.json")
    restored = revert(saved, tmp_path / "undo", tmp_path / "restored")
    assert same_file(restored / "vocabulary.json", source / "vocabulary.json")


def test_undo_of_another_model_is_refused(clip_of, random_edit, tmp_path):
    clip = clip_of("ViT-B-32")
    for seed in (1, 2):
        clip.fold(random_edit(clip.dim, seed=seed)).save(
            tmp_path / f"edited{seed}", undo=tmp_path / f"undo{seed}"
        )
    with pytest.raises(
        ValueError, match=r"other weights.*sha256 is [0-9a-f]{64}, expected [0-9a-f]"
    ):
        revert(tmp_path / "edited1", tmp_path / "undo2", tmp_path / "restored")
    with pytest.raises(ValueError, match="not an undo file"):
        revert(tmp_path / "edited1", tmp_path / "edited1" / WEIGHTS, tmp_path / "restored")
    with pytest.raises(ValueError, match="not a safetensors file"):
        revert(tmp_path / "edited1", tmp_path / "nothing", tmp_path / "restored")
    # A damaged undo file: one byte of the original tensor flipped.
    data = bytearray((tmp_path / "undo1").read_bytes())
    data[-1] ^= 1
    (tmp_path / "undo1").write_bytes(data)
    with pytest.raises(ValueError, match="does not restore the original weights"):
        revert(tmp_path / "edited1", tmp_path / "undo1", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def asked(edit: Edit, *classes: str) -> Edit:
    request = {"classes": list(classes), "domains": [], "keep": [], "aliases": {}}
    return replace(edit, provenance={**edit.provenance, "request": request})


def test_a_folder_keeps_its_history_and_undo_steps_back(folder_of, random_edit, tmp_path):
    """Three erasures one after another; the middle one is deeper than the projection."""
    clip = load(str(folder_of("ViT-B-32")), device="cpu")
    names, folders = ["cat", "dog", "car"], [folder_of("ViT-B-32")]
    for i, name in enumerate(names):
        edit = asked(random_edit(clip.dim, seed=i), name)
        if i == 1:
            found = clip.last_mlp()
            read, write = torch.ones(found.mlp_width, 1), torch.ones(found.width, 1)
            edit = Edit(read / 9, write.cumsum(0) / 9, "mlp", edit.provenance)
        edited = clip.fold(edit)
        assert edited.history.names == tuple(names[: i + 1])
        folders.append(edited.save(tmp_path / name, undo=tmp_path / f"undo-{name}"))
        clip = load(str(folders[-1]), device="cpu")
        assert clip.history == edited.history and not clip.changes
    told = clip.history
    assert (told.model, told.weights_sha256) == (
        folder_of("ViT-B-32").name,
        file_sha256(folders[0] / WEIGHTS),
    )
    card = (folders[-1] / "README.md").read_text()
    assert "- cat: everywhere\n- dog: everywhere\n- car: everywhere" in card
    assert f"base_model: {told.model}" in card
    folder = folders[-1]
    for name, before in zip(reversed(names), reversed(folders[:-1]), strict=True):
        folder = revert(folder, tmp_path / f"undo-{name}", tmp_path / f"without-{name}")
        assert same_file(folder / WEIGHTS, before / WEIGHTS)
        for file in ("recipe.yaml", CONFIG):
            assert (folder / file).exists() == (before / file).exists()
            assert not (folder / file).exists() or same_file(folder / file, before / file)
    assert not (folder / "recipe.yaml").exists()
    assert (tmp_path / "without-car" / "README.md").read_text().count(": everywhere") == 2
    with pytest.raises(ValueError, match="goes back to 1 edits, and .* tells of 0"):
        (folders[2] / "recipe.yaml").unlink()
        revert(folders[2], tmp_path / "undo-dog", tmp_path / "again")


def test_a_recipe_that_is_damaged_is_not_passed_over(clip_of, random_edit, tmp_path):
    clip = clip_of("ViT-B-32")
    saved = clip.fold(random_edit(clip.dim)).save(tmp_path / "m")
    (saved / "recipe.yaml").write_text("edits: [{request: {classes: car}}]")
    with pytest.raises(ValueError, match="recipe.yaml is malformed: request .* it takes lists"):
        load(str(saved), device="cpu")
    (saved / "recipe.yaml").write_text("what: somebody else's")
    assert load(str(saved), device="cpu").history.edits == ()  # control


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_an_undo_file_that_was_tampered_with_is_refused(name, clip_of, random_edit, tmp_path):
    clip = clip_of(name)
    saved = clip.fold(random_edit(clip.dim)).save(tmp_path / "m", undo=tmp_path / "undo")
    with safe_open(tmp_path / "undo", "pt") as file:
        said, held = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    config = json.loads(said["config"])
    assert config["model_cfg"]["embed_dim"] == clip.dim

    def reverted(**changed: str | None) -> Path:
        metadata = {k: v for k, v in {**said, **changed}.items() if v is not None}
        save_file(held or {"none": torch.zeros(1)}, tmp_path / "other", metadata=metadata)
        return revert(saved, tmp_path / "other", tmp_path / "restored", overwrite=True)

    reverted()  # control
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    with pytest.raises(ValueError, match=f"holds another {CONFIG} than .*m"):
        reverted(config=json.dumps(config))
    config = json.loads(said["config"])
    config["preprocess_cfg"] = {**config.get("preprocess_cfg", {}), "mean": [0, 0, 0]}
    with pytest.raises(ValueError, match=f"holds another {CONFIG}"):
        reverted(config=json.dumps(config))
    for lost in ("config", "header", "edited", "original"):
        with pytest.raises(ValueError, match=f"undo file|is damaged: it lacks {lost}"):
            reverted(**{lost: None})


def test_outputs_that_would_destroy_something_are_refused(folder_of, random_edit, tmp_path):
    source = Path(shutil.copytree(folder_of("ViT-B-32"), tmp_path / "source"))
    clip = load(str(source), device="cpu").fold(random_edit(pico.DIM))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("")
    clip.save(tmp_path / "first", undo=tmp_path / "undo")
    shutil.copytree(source, tmp_path / "copy")
    shutil.copytree(tmp_path / "first", tmp_path / "linked")
    (tmp_path / "linked" / WEIGHTS).unlink()
    (tmp_path / "linked" / WEIGHTS).symlink_to(source / WEIGHTS)
    before = sorted(tmp_path.rglob("*"))
    cases = [
        (("first",), {}, "exists; name another or pass --overwrite"),
        (("new",), {"undo": tmp_path / "undo"}, "undo.* exists; name another"),
        (("new",), {"undo": tmp_path / "new" / "undo"}, "inside the output folder"),
        (("photos",), {"overwrite": True}, "is not a model folder, so it is not replaced"),
        (("source",), {"overwrite": True}, "holds the model that is being edited"),
        (("copy",), {"overwrite": True}, "not written by this tool, so it is not replaced"),
        (("linked",), {"overwrite": True}, "holds a link, 'open_clip_model.safetensors'"),
        (
            ("new",),
            {"overwrite": True, "undo": source / WEIGHTS},
            "is the weights file that is being edited",
        ),
        (("new",), {"report": {"acc1": float("nan")}}, "report holds more than finite plain"),
    ]
    odd = clip.fold(replace(random_edit(pico.DIM), provenance={"edit": torch.ones(2)}))
    with pytest.raises(ValueError, match="recipe holds more than plain values"):
        odd.save(tmp_path / "new")
    for (name,), options, message in cases:
        with pytest.raises(ValueError, match=message):
            clip.save(tmp_path / name, **options)
    with pytest.raises(OutputExists):
        clip.save(tmp_path / "first")
    assert sorted(tmp_path.rglob("*")) == before
    clip.save(tmp_path / "first", undo=tmp_path / "undo", overwrite=True)  # control: allowed


@pytest.mark.parametrize("at", ["rewrite", "extract", "layout"])
def test_a_failure_while_writing_leaves_nothing(at, clip_of, random_edit, tmp_path, monkeypatch):
    clip = clip_of("ViT-B-16-SigLIP")
    edited = clip.fold(random_edit(clip.dim))
    (tmp_path / "kept").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, at, full)
    with pytest.raises(OSError, match="No space left"):
        edited.save(tmp_path / "edited", undo=tmp_path / "undo")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


@posix
def test_a_kill_while_overwriting_never_parts_a_folder_from_its_undo(
    clip_of, random_edit, tmp_path
):
    """The old undo stays as long as the old folder; the new folder may still lack its own."""
    clip, seen = clip_of("ViT-B-32"), set()
    old, new = (clip.fold(random_edit(clip.dim, seed=seed)) for seed in (1, 2))
    path, undo = tmp_path / "out", tmp_path / "undo"
    for name, edited in (("old", old), ("new", new)):
        edited.save(tmp_path / name, undo=tmp_path / f"undo of {name}")
    for step in itertools.count(1):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "old", path)
        shutil.copyfile(tmp_path / "undo of old", undo)
        done = forked(killed_at(step, lambda: new.save(path, True, undo=undo), CHANGES))
        is_new = same_file(path / WEIGHTS, tmp_path / "new" / WEIGHTS)
        assert is_new or same_file(path / WEIGHTS, tmp_path / "old" / WEIGHTS)
        undo_is_new = same_file(undo, tmp_path / "undo of new")
        assert undo_is_new or same_file(undo, tmp_path / "undo of old")
        seen.add((is_new, undo_is_new))
        with claimed(path), claimed(undo):
            left = {"old", "new", "out", "undo", "undo of old", "undo of new"}
            assert {p.name for p in tmp_path.iterdir()} - {".out.lock", ".undo.lock"} == left
        if done == 0:
            break
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_killed_process_leaves_no_folder(folder_of, tmp_path):
    script = """
import sys, time, torch, pico
from nullspace_unlearn.clip import load, tensors
from nullspace_unlearn.data import mini
from nullspace_unlearn.edit import Edit
def stall(value):
    print("writing", flush=True)
    time.sleep(600)
tensors.to_bytes = stall
one = torch.ones(12, 1)
load(sys.argv[1], device="cpu").fold(Edit(one, one)).save(sys.argv[2], undo=sys.argv[3])
"""
    output, undo = tmp_path / "edited", tmp_path / "undo"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, folder_of("ViT-B-32"), output, undo]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert list(tmp_path.glob(".edited.*"))  # it was in the middle
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    assert not undo.exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (CONFIG, None, "is not a model folder"),
        ("recipe.yaml", "a: [", "recipe.yaml is malformed"),
        ("recipe.yaml", "- a", "it holds no mapping"),
        ("report.json", "{", "report.json is malformed"),
    ],
)
def test_a_damaged_folder_is_said_to_be(name, text, message, clip_of, tmp_path):
    saved = clip_of("ViT-B-32").save(tmp_path / "saved")
    assert read_folder(saved).recipe is None
    (saved / name).unlink() if text is None else (saved / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folder(saved)


@st.composite
def stored(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=2))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64]))
    return torch.randint(-9, 9, shape).to(dtype)


@settings(max_examples=80, deadline=None)
@given(
    original=st.dictionaries(st.text("abcé.", min_size=1, max_size=3), stored(), min_size=1),
    new=st.dictionaries(
        st.text("abcé.", min_size=1, max_size=3),
        st.lists(st.integers(0, 3), max_size=2).map(torch.ones),
        max_size=3,
    ),
)
def test_rewriting_is_replacing_and_reassembling_is_its_inverse(original, new):
    """Oracle: the safetensors library reads what our bytes say."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_file(original, root / "a", metadata={"format": "pt"})
        tensors.rewrite(root / "a", root / "b", new)
        expected = {**original, **new}
        read = load_file(root / "b")
        assert read.keys() == expected.keys()
        for key, value in expected.items():
            assert read[key].dtype == value.dtype
            assert torch.equal(read[key], value)
        header = read_header(root / "a")
        tensors.extract(root / "a", root / "c", [key for key in new if key in original], {"x": "y"})
        tensors.reassemble(header.text, root / "c", root / "b", root / "d")
        assert (root / "d").read_bytes() == (root / "a").read_bytes()


@pytest.mark.parametrize("name", ["clip-vit-pacs", "clip-rn-pacs"])
def test_trained_models_stored_in_half_precision(name, random_edit, tmp_path):
    source = SHARED / name
    if not source.is_dir():
        pytest.skip("the shared models are not here")
    clip = load(str(source), device="cpu")
    assert same_file(clip.save(tmp_path / "same") / WEIGHTS, source / WEIGHTS)
    fold_both(clip, random_edit(clip.dim)).save(tmp_path / "edited", undo=tmp_path / "undo")
    restored = revert(tmp_path / "edited", tmp_path / "undo", tmp_path / "restored")
    assert same_file(restored / WEIGHTS, source / WEIGHTS)
    assert json.loads((restored / CONFIG).read_text()) == json.loads((source / CONFIG).read_text())


# Parameters that were trained.


def trained(clip: Clip, *keys: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """New values for some parameters, near the old ones."""
    random = torch.Generator().manual_seed(seed)
    held = {key: clip.model.get_parameter(key).float() for key in keys}
    return {k: v + 0.1 * torch.randn(v.shape, generator=random) for k, v in held.items()}


def of_both_towers(clip: Clip) -> tuple[str, ...]:
    """The first and the last parameter of each tower."""
    names = [name for name, _ in clip.model.named_parameters()]
    towers = [[n for n in names if n.startswith("visual.") is visual] for visual in (True, False)]
    return tuple(tower[i] for tower in towers for i in (1, -1))


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_parameters_put_in_place_come_back_and_undo_brings_every_byte_back(
    name, folder_of, tmp_path
):
    """Oracle: the values put into a second model, one by one, in place."""
    source = folder_of(name, torch.float16)
    clip, other = (load(str(source), device="cpu") for _ in range(2))
    new = trained(clip, *of_both_towers(clip))
    before = clip.encode_image(pico.images()), clip.encode_text(pico.PROMPTS)
    made = clip.with_parameters(new, {"method": "trained"})
    with torch.no_grad():
        for key, value in new.items():
            other.model.get_parameter(key).copy_(value)
    saved = made.save(tmp_path / "made", undo=tmp_path / "undo")
    again = load(str(saved), device="cpu")
    for one in (made, again):
        assert torch.equal(one.encode_image(pico.images()), other.encode_image(pico.images()))
        assert torch.equal(one.encode_text(pico.PROMPTS), other.encode_text(pico.PROMPTS))
    # The model it came from is as it was, and shares all that was not replaced.
    assert torch.equal(clip.encode_image(pico.images()), before[0])
    assert not torch.equal(made.encode_image(pico.images()), before[0])  # control
    assert not torch.equal(made.encode_text(pico.PROMPTS), before[1])
    old, now = (dict(c.model.state_dict(keep_vars=True)) for c in (clip, made))
    assert {key for key in old if old[key].data_ptr() != now[key].data_ptr()} == new.keys()
    assert {c.key: c.side for c in made.changes} == {
        key: "visual" if key.startswith("visual.") else "text" for key in new
    }
    (said,) = made.history.edits
    assert said == {"side": "both", "parameter": list(new), "method": "trained"}
    restored = revert(saved, tmp_path / "undo", tmp_path / "restored")
    assert not same_file(saved / WEIGHTS, source / WEIGHTS)
    assert same_file(restored / WEIGHTS, source / WEIGHTS)
    assert raw(tmp_path / "undo").keys() == new.keys()


def test_parameters_put_in_place_are_copies(clip_of):
    """Training on, on either side, changes neither the other nor what is said of it."""
    clip = clip_of("ViT-B-32")
    value = torch.nn.Parameter(trained(clip, "visual.proj")["visual.proj"])
    made = clip.with_parameters({"visual.proj": value}, {})
    held = made.model.get_parameter("visual.proj")
    features = made.encode_image(pico.images())
    assert not held.requires_grad
    with torch.no_grad():
        value.zero_()
    assert torch.equal(made.encode_image(pico.images()), features)
    (change,) = made.changes
    with torch.no_grad():
        held.mul_(2)
    assert torch.equal(change.edited * 2, held)
    held.data.div_(2)


def test_an_edit_and_trained_parameters_follow_one_another(folder_of, random_edit, tmp_path):
    source = folder_of("ViT-B-32", torch.float16)
    clip = load(str(source), device="cpu")
    edit = random_edit(clip.dim)
    new = trained(clip, "visual.proj", "visual.ln_post.weight")
    made = clip.fold(edit).with_parameters(new, {"method": "trained"}).fold(edit)
    expected = edit.apply(clip.with_parameters(new, {}).encode_image(pico.images()))
    assert torch.allclose(made.encode_image(pico.images()), expected, rtol=1e-4, atol=1e-5)
    assert [(edit["method"], edit["parameter"]) for edit in made.history.edits] == [
        ("random", ["visual.proj"]),
        ("trained", ["visual.proj", "visual.ln_post.weight"]),
        ("random", ["visual.proj"]),
    ]
    made.save(tmp_path / "made", undo=tmp_path / "undo")
    restored = revert(tmp_path / "made", tmp_path / "undo", tmp_path / "restored")
    assert same_file(restored / WEIGHTS, source / WEIGHTS)


def test_parameters_that_do_not_fit_are_refused(folder_of):
    clip = load(str(folder_of("ViT-B-32")), device="cpu")
    good = trained(clip, "visual.proj")["visual.proj"]
    rows, columns = good.shape
    cases = [
        ("visual.other", good, rf"visual.other \[{rows}, {columns}\] .* no such parameter"),
        ("visual", good, "no such parameter"),
        ("visual.proj", good.T, rf"visual.proj \[{columns}, {rows}\] .* there is \[{rows}, "),
        ("visual.proj", good[None], "cannot be replaced"),
        ("visual.proj", good.index_fill(0, torch.tensor([1]), float("nan")), "holds NaN or Inf"),
        ("visual.proj", good.index_fill(0, torch.tensor([1]), float("inf")), "holds NaN or Inf"),
    ]
    for key, value, message in cases:
        with pytest.raises(ValueError, match=message):
            clip.with_parameters({key: value}, {})
    half = load(str(folder_of("ViT-B-32")), device="cpu", precision="fp16")
    with pytest.raises(ValueError, match="does not fit float16"):
        half.with_parameters({"visual.proj": good * 1e6}, {})
    clip.with_parameters({"visual.proj": good}, {})  # control


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: mit", "mit"),
        ("license: other\nlicense_name: mine", None),
        ("license: [mit]", None),
        ("license: '<b>'", None),
        ("!!python/object:os.system x", None),
        ("{", None),
    ],
)
def test_the_licence_is_that_of_the_original_where_its_card_says_so(head, licence, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(mini.MODEL_FOLDER, own)
    (own / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    clip = load(own)
    edit = Edit(torch.eye(clip.dim)[:, :1], torch.eye(clip.dim)[:, :1])
    clip.fold(edit).save(tmp_path / "out")
    said = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (said.license, said.get("license_name")) == (
        ("other", "that-of-the-base-model") if licence is None else (licence, None)
    )
