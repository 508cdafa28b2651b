"""Models for other libraries; oracle: these libraries, which never see the model itself."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import pico
import pytest
import tiny
import torch
from safetensors.torch import load_file

from nullspace_unlearn.clip import export, load
from nullspace_unlearn.clip.written_for import clip_config

PROMPTS = ["a photo of a car.", "Sketch, 2 dogs: a naïve one!", "tree"]


@pytest.fixture(scope="session")
def edited(tmp_path_factory, random_edit) -> Path:
    """The bundled model with an edit, as a folder of open_clip."""
    clip = load("nsu-mini", device="cpu")
    folder = tmp_path_factory.mktemp("edited") / "out"
    return random_edit(clip.dim).fold(clip).save(folder, report={"note": "nothing measured"})


@pytest.fixture(scope="session")
def exported(edited, tmp_path_factory) -> Path:
    """The same as a folder of transformers."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    return export(load(edited, device="cpu"), "transformers", folder)


def pictures(clip: Any) -> torch.Tensor:
    return torch.randn(3, 3, *clip.image_size, generator=torch.Generator().manual_seed(7))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() < 1e-5 * other.norm())


def test_to_transformers_and_back(edited, exported, tmp_path):
    clip, other = load(edited, device="cpu"), load(exported, device="cpu")
    images = pictures(clip)
    assert close(other.encode_image(images), clip.encode_image(images))
    assert close(other.encode_text(PROMPTS), clip.encode_text(PROMPTS))
    back = export(other, "open_clip", tmp_path / "back")
    before, after = (load_file(f / "open_clip_model.safetensors") for f in (edited, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name in ("recipe.yaml", "report.json", "vocabulary.json"):
        for folder in (exported, back):
            assert (folder / name).read_bytes() == (edited / name).read_bytes()
    # open_clip's own tokenizer is known again, and no other is needed.
    stock, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{back}")
    tokens = open_clip.get_tokenizer(f"local-dir:{back}")(PROMPTS)
    with torch.no_grad():
        assert close(stock.eval().encode_text(tokens), clip.encode_text(PROMPTS))
    assert torch.equal(preprocess(tiny.picture()), clip.preprocess(tiny.picture()))
    assert not list(back.glob("tokenizer*"))
    assert load(back, device="cpu").history == clip.history
    # The control: the original is another model.
    assert not close(load("nsu-mini", device="cpu").encode_image(images), clip.encode_image(images))


def test_what_is_exported_says_how_to_load_it(exported, edited, tmp_path):
    assert 'CLIPModel.from_pretrained("hf")' in (exported / "README.md").read_text()
    sentences = export(load(exported, device="cpu"), "sentence-transformers", tmp_path / "st")
    assert 'SentenceTransformer("st")' in (sentences / "README.md").read_text()
    weights = Path("0_CLIPModel", "model.safetensors")
    assert (sentences / weights).read_bytes() == (exported / "model.safetensors").read_bytes()
    clip, again = load(edited, device="cpu"), load(sentences, device="cpu")
    assert close(again.encode_text(PROMPTS), clip.encode_text(PROMPTS))
    if find_spec("sentence_transformers") is not None:
        stock = tiny.sentences(sentences)
        assert close(stock["text"], clip.encode_text(tiny.PROMPTS))


def test_a_tokenizer_of_its_own_goes_along(tmp_path):
    folder = tiny.write("CLIPModel", tmp_path / "model")
    out = export(load(folder, device="cpu"), "open_clip", tmp_path / "out")
    assert (out / "tokenizer.json").is_file()
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(tiny.PROMPTS)
    with torch.no_grad():
        assert close(model.eval().encode_text(tokens), tiny.features(folder)["text"])


def siglip_to_transformers(folder: Path, out: Path) -> tuple[Any, Path]:
    """A SigLIP of open_clip as its hub has it, and its folder of transformers."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = load(folder, device="cpu")
    return clip, export(clip, "transformers", out)


def test_siglip_to_transformers(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("ViT-B-16-SigLIP"), tmp_path / "siglip")
    clip, out = siglip_to_transformers(folder, tmp_path / "out")
    stock = tiny.features(out, length=8)
    # What open_clip takes from texts before it reads them, the folder's own tokenizer does.
    assert close(stock["text"], clip.encode_text(tiny.PROMPTS))
    assert close(
        tiny.features(out, ["A Photo_of, the CAR!"], 8)["text"],
        clip.encode_text(["a photo of the car"]),
    )
    assert close(stock["image"], clip.encode_image(tiny.images()))
    again = load(out, device="cpu")
    assert torch.equal(again.preprocess(tiny.picture()), clip.preprocess(tiny.picture()))
    assert not close(stock["text"], stock["text"].flip(0))  # the control
    assert json.loads((out / "config.json").read_text())["architectures"] == ["SiglipModel"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"])
def test_siglip_of_full_size_there_and_back(name, tmp_path):
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    config["model_cfg"]["text_cfg"]["vocab_size"] = 64
    config["preprocess_cfg"] = {
        "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash",
    }  # fmt: skip
    folder = pico.write_config(config, tmp_path / "siglip")
    clip, out = siglip_to_transformers(folder, tmp_path / "out")
    stock, images = tiny.features(out, length=64, size=224), tiny.images(size=224)
    assert close(stock["text"], clip.encode_text(tiny.PROMPTS))
    assert close(stock["image"], clip.encode_image(images))
    back = load(export(load(out, device="cpu"), "open_clip", tmp_path / "back"), device="cpu")
    assert close(back.encode_image(images), clip.encode_image(images))
    assert close(back.encode_text(PROMPTS), clip.encode_text(PROMPTS))


@pytest.mark.slow
def test_onnx_computes_the_same_for_any_number_of_rows(edited, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    clip = load(edited, device="cpu")
    out = export(clip, "onnx", tmp_path / "onnx")
    for rows in (1, 3):
        images, tokens = pictures(clip)[:rows], clip.tokenizer(PROMPTS[:rows])
        for name, given, made, inputs, expected in (
            ("image", "pixel_values", "image_embeds", images, clip.encode_image(images)),
            ("text", "input_ids", "text_embeds", tokens, clip.encode_text(PROMPTS[:rows])),
        ):
            session = onnxruntime.InferenceSession(str(out / f"{name}.onnx"))
            (found,) = session.run([made], {given: inputs.numpy()})
            assert close(torch.from_numpy(found), expected)
    said = json.loads((out / "preprocess.json").read_text())
    assert said["size"] == list(clip.image_size)
    assert {f.name for f in out.iterdir()} >= {"README.md", "recipe.yaml", "vocab.json"}


def test_what_computes_otherwise_is_not_left_behind(edited, tmp_path, monkeypatch):
    """A configuration that forgets the activation gives other features, and no folder."""
    written = sys.modules["nullspace_unlearn.clip.written_for"]

    def forgets(config: dict[str, Any]) -> dict[str, Any]:
        made = clip_config(config)
        made["vision_config"]["hidden_act"] = "quick_gelu"
        return made

    monkeypatch.setattr(written, "clip_config", forgets)
    with pytest.raises(RuntimeError, match="other visual features than this model, by"):
        export(load(edited, device="cpu"), "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(edited, tmp_path, folder_of, random_edit):
    clip = load(edited, device="cpu")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="cannot export to 'keras'; allowed: open_clip, tra"):
        export(clip, "keras", out)
    with pytest.raises(ValueError, match="only a model as it was loaded"):
        export(random_edit(clip.dim).fold(clip), "transformers", out)
    for name, message in {
        "RN50": "this is a ResNet",
        "coca_ViT-B-32": "nothing like ",
    }.items():
        with pytest.raises(ValueError, match=message):
            export(load(folder_of(name), device="cpu"), "transformers", out)
    siglip = load(folder_of("ViT-B-16-SigLIP"), device="cpu")
    with pytest.raises(ValueError, match="pads texts to the longest of a batch"):
        export(siglip, "sentence-transformers", out)
    grown = random_edit(siglip.dim).fold(siglip).save(tmp_path / "grown")
    with pytest.raises(ValueError, match="no place for the projection of this model's image"):
        export(load(grown, device="cpu"), "transformers", out)
    alone = tiny.write("CLIPTextModelWithProjection", tmp_path / "text")
    with pytest.raises(ValueError, match="is one tower alone"):
        export(load(alone, device="cpu"), "open_clip", out)
    siglip = tiny.write("SiglipModel", tmp_path / "siglip")
    siglip = load(siglip, device="cpu")
    with pytest.raises(ValueError, match="open_clip has no image tower like that"):
        export(siglip, "open_clip", out)
    with pytest.raises(ValueError, match="pads texts to the longest of a batch"):
        export(siglip, "sentence-transformers", out)
    assert not out.exists()
    shutil.copytree(edited, out)
    with pytest.raises(ValueError, match="exists"):
        export(clip, "transformers", out)
