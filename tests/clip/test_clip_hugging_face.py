"""Models of transformers and sentence-transformers; oracle: these libraries, in this process for
what is loaded and in one of its own, which never imports us, for what is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nullspace_unlearn.clip import Clip, load, revert, ties
from nullspace_unlearn.edit import Edit

BOTH = ("CLIPModel", "SiglipModel", "Siglip2Model")
ALONE = ("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection")
MODULES = find_spec("sentence_transformers") is not None


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, by its class's name, and one of sentence-transformers."""
    root = tmp_path_factory.mktemp("hub")
    for kind in (*BOTH, *ALONE):
        tiny.write(kind, root / kind)
    tiny.write_sentence_transformers(root / "sentences")
    return root


@pytest.fixture(scope="session")
def of(hub: Path) -> Callable[[str], Clip]:
    """Name of a folder in `hub` -> the model; an image tower alone gets its text tower."""

    def clip(name: str) -> Clip:
        other = hub / "CLIPModel" if name == ALONE[0] else None
        return load(hub / name, other, device="cpu")

    return clip


def embedded(clip: Clip) -> dict[str, torch.Tensor]:
    """What `tiny.features` computes, by us."""
    made = {"text": clip.encode_text(tiny.PROMPTS)}
    if clip.source.layout.kind != ALONE[1]:
        made["image"] = clip.encode_image(tiny.images())
    return made


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two batches of features differ, beside how far their rows differ."""
    return float((one - other).norm() / (other - other.mean(0)).norm())


@pytest.mark.parametrize("kind", (*BOTH, *ALONE))
def test_features_are_those_of_transformers(of, hub, kind):
    clip, stock = of(kind), tiny.features(hub / kind)
    ours = embedded(clip)
    for name, expected in stock.items():
        assert off(ours[name], expected) < 1e-5
        # The control: the same weights under the other activation.
        assert off(ours[name].roll(1, 0), expected) > 0.1


@pytest.mark.parametrize(
    "text",
    [
        {"eos_token_id": 2},  # which transformers takes to be the largest id there is
        {"eos_token_id": 23},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"layer_norm_eps": 1e-3, "intermediate_size": 43},
    ],
)
def test_what_a_configuration_says_of_the_text_tower_is_heard(tmp_path, hub, text):
    folder = tiny.write("CLIPModel", tmp_path / "model", **text)
    clip, stock = load(folder, device="cpu"), tiny.features(folder)
    assert off(clip.encode_text(tiny.PROMPTS), stock["text"]) < 1e-5
    # The control: the same weights under the common configuration.
    common = {key: value for key, value in text.items() if key != "intermediate_size"}
    if common.keys() != {"layer_norm_eps"}:
        return
    said = json.loads((folder / "config.json").read_text())
    said["text_config"]["layer_norm_eps"] = 1e-5
    (folder / "config.json").write_text(json.dumps(said))
    assert off(load(folder, device="cpu").encode_text(tiny.PROMPTS), stock["text"]) > 1e-5


def test_quick_gelu_is_heard_in_both_towers(tmp_path):
    folder = tiny.write("CLIPModel", tmp_path / "model")
    said = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        said[tower]["hidden_act"] = "quick_gelu"
    before = embedded(load(folder, device="cpu"))
    (folder / "config.json").write_text(json.dumps(said))
    clip, stock = load(folder, device="cpu"), tiny.features(folder)
    for name, ours in embedded(clip).items():
        assert off(ours, stock[name]) < 1e-5 < off(before[name], stock[name])


def test_images_are_prepared_as_by_transformers(of, hub):
    for kind in ("CLIPModel", "SiglipModel"):
        processor = transformers.AutoImageProcessor.from_pretrained(hub / kind)
        expected = processor(tiny.picture(), return_tensors="pt").pixel_values[0]
        difference = (of(kind).preprocess(tiny.picture()) - expected).abs()
        assert difference.max() < 1.5 / 255 / 0.25  # one grey level, where two resize
    other = of("SiglipModel").preprocess(tiny.picture())
    assert (of("CLIPModel").preprocess(tiny.picture()) - other).abs().max() > 0.1


def test_square_images_are_prepared_as_for_siglip_2(of, hub):
    """Others it takes in their own shape, by as many patches; here they are squashed."""
    processor = transformers.AutoImageProcessor.from_pretrained(hub / "Siglip2Model")
    prepare, picture = of("Siglip2Model").preprocess, tiny.picture()
    for one in (picture.crop((0, 0, 48, 48)), picture.crop((0, 0, 20, 20))):
        expected = processor(one, return_tensors="pt")
        assert expected.spatial_shapes.tolist() == [[2, 2]]
        difference = (tiny.patches(prepare(one)[None]) - expected.pixel_values).abs()
        assert difference.max() < 1.5 / 255 / 0.5  # one grey level
    wide = processor(picture.crop((0, 0, 64, 16)), return_tensors="pt")
    assert wide.spatial_shapes.tolist() == [[1, 4]]


def _edits(clip: Clip, random_edit: Callable[..., Edit]) -> list[Clip]:
    """The model with an edit in each place that it has for one."""
    sides = clip.source.layout.sides
    edits = [(random_edit(clip.dim), side) for side in sides]
    if "visual" in sides:
        width, mlp = clip.projection("visual").width, clip.last_mlp()
        edits.append((random_edit(clip.dim, width), "visual"))
        deep = random_edit(mlp.width, mlp.mlp_width, seed=1)
        edits.append((Edit(deep.read, deep.write, "mlp", deep.provenance), "visual"))
    return [edit.fold(clip, side) for edit, side in edits]


@pytest.fixture(scope="session")
def written(of, tmp_path_factory, random_edit) -> dict[Path, Clip]:
    """Folder -> the edited model it was written from."""
    root = tmp_path_factory.mktemp("written")
    made = {}
    for name in (*BOTH, *ALONE):
        for i, edited in enumerate(_edits(of(name), random_edit)):
            made[edited.save(root / f"{name}-{i}", undo=root / f"{name}-{i}.undo")] = edited
    return made


@pytest.fixture(scope="session")
def stock(written, tmp_path_factory) -> dict[str, np.ndarray]:
    """What transformers computes from those folders, in a process that never imports us."""
    out = tmp_path_factory.mktemp("stock") / "features.npz"
    script = Path(__file__).parent / "stock_transformers.py"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(script), str(out), *map(str, written)]
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=out.parent)
    with np.load(out) as found:
        return dict(found)


def test_what_is_written_loads_in_stock_transformers(written, stock, of):
    assert len(written) == 4 + 1 + 1 + 3 + 1
    for folder, edited in written.items():
        moved = 0.0
        for name, ours in embedded(edited).items():
            if f"{folder} {name}" not in stock:  # the tower that the folder has not
                continue
            there = torch.from_numpy(stock[f"{folder} {name}"])
            assert off(ours, there) < 1e-5, folder
            original = embedded(of(edited.source.layout.kind))[name]
            moved = max(moved, off(original, there))
        assert moved > 1e-3, folder  # the control: it is not the original's


def test_only_the_edited_tensors_differ(written, hub):
    for folder, edited in written.items():
        origin = hub / edited.source.layout.kind
        before, after = (load_file(place / "model.safetensors") for place in (origin, folder))
        assert before.keys() == after.keys()
        differ = [name for name, value in before.items() if not torch.equal(value, after[name])]
        assert sorted(differ) == sorted(edited.changed) != []
        for file in origin.iterdir():
            if file.name not in ("model.safetensors", "README.md"):
                assert (folder / file.name).read_bytes() == file.read_bytes()
        assert {f.name for f in folder.iterdir()} - {f.name for f in origin.iterdir()} == {
            "recipe.yaml"
        }


def test_what_is_written_is_loaded_again_with_its_history(written):
    for folder, edited in written.items():
        other = folder.parent / "CLIPModel-0" if edited.source.layout.kind == ALONE[0] else None
        again = load(folder, other, device="cpu")
        assert again.history.edits[-1]["parameter"] == edited.changed
        for name, ours in embedded(again).items():
            if name != "text" or other is None:
                assert off(ours, embedded(edited)[name]) < 1e-6


def test_revert_brings_every_byte_back(written, hub, tmp_path):
    for folder in written:
        kind = folder.name.rpartition("-")[0]
        undo = folder.with_name(f"{folder.name}.undo")
        back = revert(folder, undo, tmp_path / folder.name)
        weights = "model.safetensors"
        assert (back / weights).read_bytes() == (hub / kind / weights).read_bytes()
        assert (folder / weights).read_bytes() != (hub / kind / weights).read_bytes()
        for name in ("config.json", "tokenizer.json"):
            if (folder / name).exists():
                assert (back / name).read_bytes() == (hub / kind / name).read_bytes()
    one, other = list(written)[:2]
    with pytest.raises(ValueError, match="other weights"):
        revert(one, other.with_name(f"{other.name}.undo"), tmp_path / "mixed")


def test_the_card_says_how_to_load_it(written):
    for folder, edited in written.items():
        card = (folder / "README.md").read_text()
        assert f'{edited.source.layout.kind}.from_pretrained("{folder.name}")' in card
        assert "library_name: transformers" in card and "open_clip" not in card


def test_half_precision_stays_where_nothing_was_edited(tmp_path, hub, random_edit):
    folder = shutil.copytree(hub / "CLIPModel", tmp_path / "half")
    half = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    edited = random_edit(tiny.DIM).fold(load(folder, device="cpu"))
    out = edited.save(tmp_path / "out")
    with safe_open(str(out / "model.safetensors"), framework="pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}
        assert file.metadata() == {"format": "pt"}
    assert dtypes.pop("visual_projection.weight") == torch.float32
    assert set(dtypes.values()) == {torch.float16}


def test_trained_attention_is_written_where_it_belongs(of, tmp_path):
    """open_clip's one tensor of queries, keys and values is three; those alone that changed."""
    clip = of("CLIPModel")
    key = "visual.transformer.resblocks.1.attn.in_proj_weight"
    value = clip.model.get_parameter(key).clone()
    width = value.shape[1]
    value[2 * width :] += 0.5
    trained = clip.with_parameters({key: value}, {"method": "by hand"})
    out = trained.save(tmp_path / "out")
    before = load_file(clip.source.weights)
    after = load_file(out / "model.safetensors")
    differ = [name for name, held in before.items() if not torch.equal(held, after[name])]
    assert differ == ["vision_model.encoder.layers.1.self_attn.v_proj.weight"]
    assert off(embedded(trained)["image"], tiny.features(out)["image"]) < 1e-5


def test_ties_there_and_back_change_nothing(of):
    for kind in BOTH:
        clip = of(kind)
        tied, ours = clip.source.layout.ties, clip.model.state_dict()
        theirs = load_file(clip.source.weights)
        there = ties.to_theirs(tied, ours, {name: value.shape for name, value in theirs.items()})
        assert there.keys() == theirs.keys()
        assert all(torch.equal(there[name], value) for name, value in theirs.items())
        back = ties.to_ours(tied, there, {name: value.shape for name, value in ours.items()})
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[name], value) for name, value in ours.items())
    with pytest.raises(ValueError, match=r"logit_scale \[3\] cannot be made of \[1\]"):
        ties.to_ours([ties.Tie(("logit_scale",), ("logit_scale",))], theirs, {"logit_scale": (3,)})


def test_siglip_has_no_place_for_an_edit_of_its_image_side(of, random_edit):
    clip = of("SiglipModel")
    assert clip.spaces == ()
    with pytest.raises(ValueError, match=r"no visual projection.*its text side can be edited"):
        random_edit(clip.dim).fold(clip)
    with pytest.raises(ValueError, match="no place for visual.head.proj.weight"):
        clip.source.layout.check_keys(["visual.head.proj.weight"])


def test_one_tower_alone(of, hub, tmp_path, random_edit):
    text, image = of(ALONE[1]), hub / ALONE[0]
    with pytest.raises(ValueError, match=r"text tower alone, and takes no images.*--pretrained"):
        text.encode_image(tiny.images())
    with pytest.raises(ValueError, match=r"no visual projection.*--side text --method avert"):
        random_edit(text.dim).fold(text)
    with pytest.raises(ValueError, match="image tower alone, and names need the text tower"):
        load(image, device="cpu")
    both = load(hub / ALONE[1], image, device="cpu")
    assert off(both.encode_image(tiny.images()), tiny.features(image)["image"]) < 1e-5
    with pytest.raises(ValueError, match="SiglipModel do not belong together: embed_dim is 12"):
        load(image, hub / "SiglipModel", device="cpu")
    with pytest.raises(ValueError, match="is no model of transformers that has a text tower"):
        load(image, image, device="cpu")


@pytest.mark.skipif(not MODULES, reason="sentence-transformers is not installed")
def test_sentence_transformers_both_ways(of, hub, tmp_path, random_edit):
    clip = of("sentences")
    edited = random_edit(clip.dim).fold(clip)
    out = edited.save(tmp_path / "out", undo=tmp_path / "undo")
    picture = clip.preprocess(tiny.picture())[None]
    for model, folder in ((clip, hub / "sentences"), (edited, out)):
        stock = tiny.sentences(folder)
        assert off(model.encode_text(tiny.PROMPTS), stock["text"]) < 1e-5
        # Pictures are resized by two libraries: see test_images_are_prepared_as_by_transformers.
        torch.testing.assert_close(model.encode_image(picture), stock["image"], atol=5e-3, rtol=0)
    assert (edited.encode_image(picture) - clip.encode_image(picture)).norm() > 0.1


def test_a_folder_of_sentence_transformers_is_written_whole(of, hub, tmp_path, random_edit):
    clip = of("sentences")
    out = random_edit(clip.dim).fold(clip).save(tmp_path / "out", undo=tmp_path / "undo")
    names = {str(f.relative_to(hub / "sentences")) for f in (hub / "sentences").rglob("*.*")}
    names -= {"0_CLIPModel/README.md"}
    made = {str(f.relative_to(out)) for f in out.rglob("*.*")}
    assert made == names | {"README.md", "recipe.yaml"}
    assert "SentenceTransformer(" in (out / "README.md").read_text()
    back = revert(out, tmp_path / "undo", tmp_path / "back")
    weights = Path("0_CLIPModel", "model.safetensors")
    assert (back / weights).read_bytes() == (hub / "sentences" / weights).read_bytes()


def test_a_repository_is_downloaded_as_transformers_does(hub, monkeypatch):
    asked: list[Any] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(hub / "CLIPModel")

    module = sys.modules["nullspace_unlearn.clip.load"]
    monkeypatch.setattr(module, "snapshot_download", snapshot)
    clip = load("org/repo", device="cpu")
    assert (clip.source.name, clip.source.base_model) == ("org/repo", "org/repo")
    ((repository, patterns),) = asked
    assert repository == "org/repo" and "model.safetensors" in patterns
    assert not any("bin" in pattern or pattern == "*.safetensors" for pattern in patterns)

    def absent(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(module, "snapshot_download", absent)
    with pytest.raises(RuntimeError, match="cannot download org/repo: no route to host"):
        load("org/repo", device="cpu")


def test_what_has_no_configuration_of_open_clip_is_taken_for_transformers(hub, monkeypatch):
    module = sys.modules["nullspace_unlearn.clip.load"]

    def absent(repository: str, *_: Any, **__: Any) -> str:
        raise EntryNotFoundError(f"{repository} has no such file")

    monkeypatch.setattr(module, "download_pretrained_from_hf", absent)
    monkeypatch.setattr(module, "snapshot_download", lambda *_, **__: str(hub / "CLIPModel"))
    clip = load("hf-hub:org/repo", device="cpu")
    assert (clip.source.name, clip.source.layout.kind) == ("hf-hub:org/repo", "CLIPModel")


def _config(folder: Path, file: str = "config.json", **said: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))


def _bin_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def _without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        del held[name]
        save_file(held, folder / "model.safetensors")

    return change


def _nan(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    held["logit_scale"] = torch.tensor(torch.nan)
    save_file(held, folder / "model.safetensors")


def _wider(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())["text_config"]
    _config(folder, text_config={**said, "vocab_size": 99})


def _mixed(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())["text_config"]
    _config(folder, text_config={**said, "hidden_act": "quick_gelu"})


def _huge(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())["text_config"]
    _config(folder, text_config={**said, "num_hidden_layers": 10**9})


def _crop(folder: Path) -> None:
    _config(folder, "preprocessor_config.json", size={"shortest_edge": 40})


# Older transformers take any value, and building the model then fails.
_UNUSABLE = "cannot be used|cannot build .* from its configuration"

BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no projections": (
        lambda f: _config(f, model_type="clip_vision_model", architectures=["CLIPVisionModel"]),
        r"CLIPVisionModel, which has no projection.*allowed: CLIPVisionModelWithProjection",
    ),
    "projections left out": (_without("visual_projection.weight"), "lacks visual_projection"),
    "no CLIP": (lambda f: _config(f, model_type="bert"), "type 'bert'; allowed: CLIPModel"),
    "a type that is no text": (lambda f: _config(f, model_type=[]), r"type \[\]; allowed"),
    "code": (
        lambda f: _config(f, auto_map={"AutoModel": "evil.Evil"}),
        r"config.json brings code along \(auto_map\)",
    ),
    "code of the tokenizer": (
        lambda f: _config(f, "tokenizer_config.json", auto_map={"AutoTokenizer": "evil.Evil"}),
        r"tokenizer_config.json brings code along",
    ),
    "pickle": (_bin_only, r"pytorch_model.bin, which may run code and is never read.*save_pre"),
    "shards": (_sharded, r"several files, which is not read.*max_shard_size"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"abc"),
        "model.safetensors is damaged",
    ),
    "damaged configuration": (lambda f: (f / "config.json").write_text("{"), "json is damaged"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "holds no dict"),
    "a configuration of text": (lambda f: _config(f, projection_dim="much"), _UNUSABLE),
    "another size": (_wider, "text_model.*cannot be made of|token_embedding.*cannot be made of"),
    "a size that fills the memory": (_huge, "do not belong together"),
    "towers that are no mappings": (lambda f: _config(f, text_config=[1]), "cannot be used"),
    "NaN": (_nan, "holds NaN or Inf in logit_scale"),
    "two activations": (_mixed, "different activations"),
    "an unknown crop": (_crop, "then cropped to another size"),
    "sentence-transformers that is no CLIP": (
        lambda f: (
            (f / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}]')
            and _config(f, model_type="bert")
        ),
        r"of no CLIP: its first module is Transformer \(bert\)",
    ),
    "SigLIP in sentence-transformers": (
        lambda f: (
            (f / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}]')
            and _config(f, model_type="siglip2")
        ),
        "pads texts to the longest of a batch.*without modules.json",
    ),
    "a layer after CLIP": (
        lambda f: (f / "modules.json").write_text(
            '[{"type": "a.CLIPModel", "path": ""}, {"type": "a.Dense", "path": "1_Dense"}]'
        ),
        "changes what CLIP computes by Dense",
    ),
    "modules elsewhere": (
        lambda f: (f / "modules.json").write_text('[{"type": "a.CLIPModel", "path": "../x"}]'),
        "outside the folder",
    ),
    "no modules": (lambda f: (f / "modules.json").write_text("[]"), "lists no modules"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_in_a_line(hub, tmp_path, case):
    change, message = BAD[case]
    folder = shutil.copytree(hub / "CLIPModel", tmp_path / "model")
    change(folder)
    with pytest.raises(ValueError, match=message) as refused:
        load(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_weights_replaced_since_they_were_loaded_are_not_edited(hub, tmp_path, random_edit):
    folder = shutil.copytree(hub / "CLIPModel", tmp_path / "model")
    edited = random_edit(tiny.DIM).fold(load(folder, device="cpu"))
    other = {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="does not hold what was loaded from it"):
        edited.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
