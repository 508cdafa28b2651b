"""A model folder for another library, proven to compute the same before it is there."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from nullspace_unlearn import words as vocabulary
from nullspace_unlearn.clip import hugging_face, tensors, ties, written_for
from nullspace_unlearn.clip.card import model_card
from nullspace_unlearn.clip.folder import check_outputs, copy_about
from nullspace_unlearn.clip.layout import MODULES_NAME, OPEN_CLIP, Layout
from nullspace_unlearn.clip.load import load
from nullspace_unlearn.clip.model import Clip
from nullspace_unlearn.clip.network import encode, probe_inputs
from nullspace_unlearn.clip.source import (
    CARD_NAME,
    RECIPE_NAME,
    REPORT_NAME,
    config_text,
    one_line,
)
from nullspace_unlearn.edit import Side
from nullspace_unlearn.files import new_folder, read_json

Target = Literal["open_clip", "transformers", "sentence-transformers", "onnx"]
TARGETS: tuple[str, ...] = get_args(Target)
"""What a model can be written for."""

TOLERANCE = 1e-5
"""Allowed distance of features from the model's, relative to them."""

_PART = "0_CLIPModel"
_PROMPTS = ("a photo of a dog.", "Sketch: 2 guitars on a table", "car")
_OPSET = 18


def export(clip: Clip, to: str, path: str | Path, overwrite: bool = False) -> Path:
    """Write a model for another library.

    Weights keep the precision they are stored in. Recipe, report and vocabulary go along.

    Args:
        clip: The model, as loaded; at precision fp32.
        to: One of `TARGETS`. For "onnx" the folder holds image.onnx (`pixel_values`
            `[batch, 3, rows, columns]` -> `image_embeds` `[batch, dim]`) and text.onnx (`input_ids`
            `[batch, context]` -> `text_embeds`), with any number of rows, the embeddings not
            normalised, and preprocess.json, which says how images are prepared.
        path: The folder to write.
        overwrite: Whether an existing one may be replaced.

    Returns:
        The folder.

    Raises:
        OutputExists: If the folder exists and `overwrite` is false.
        ValueError: If the library has no such model, or what it takes is not installed.
        RuntimeError: If what was written does not compute what the model does; nothing is left.
    """
    path = Path(path)
    if to not in TARGETS:
        raise ValueError(f"cannot export to {to!r}; allowed: {', '.join(TARGETS)}")
    if clip.changes or clip.adapter is not None:
        raise ValueError("only a model as it was loaded is exported: save it, and load that")
    if next(clip.model.parameters()).dtype != torch.float32:
        raise ValueError("a model is exported as it is stored: load it at precision fp32")
    clip.source.layout.check_whole()
    if to == clip.source.layout.library == "open_clip":
        return clip.save(path, overwrite)
    check_outputs(clip.source, path, None, overwrite)
    write = {"open_clip": _open_clip, "onnx": _onnx}.get(to, _transformers)
    layout = _layout(clip, to)
    with new_folder(path, overwrite) as folder:
        computed = write(clip, layout, folder)
        _about(clip, layout, path, folder)
        for side, (ours, theirs) in computed.items():
            error = float((ours - theirs).norm() / ours.norm())
            if not error <= TOLERANCE:
                raise RuntimeError(
                    f"{to} computes other {side} features than this model, by {error:.2g} of "
                    f"their size, allowed {TOLERANCE:g}; nothing was written"
                )
    return path


_Computed = Mapping[str, tuple[Tensor, Tensor]]


def _layout(clip: Clip, to: str) -> Layout:
    """Where the folder will keep what."""
    if to == "open_clip":
        return OPEN_CLIP
    if to == "onnx":
        return Layout("onnx")
    if to == "sentence-transformers" and written_for.is_siglip(clip.config):
        raise ValueError(f"{hugging_face.PADDED}: export it to another")
    part = _PART if to == "sentence-transformers" else ""
    library: Any = to
    given = clip.source.layout
    if given.library != "open_clip":
        return replace(given, library=library, part=part)
    vision, text = (clip.config["model_cfg"][name] for name in ("vision_cfg", "text_cfg"))
    config = _config(clip)  # which refuses what has no like
    if config["model_type"] == "siglip":
        tied = (
            *ties.siglip_image(config["vision_config"]["num_hidden_layers"], patches=False),
            *ties.siglip_text(text["layers"]),
            *(ties.Tie((name,), (name,)) for name in ("logit_scale", "logit_bias")),
        )
        return Layout(library, "SiglipModel", part, tied, ("text",))
    tied = (
        *ties.clip_image(vision["layers"]),
        *ties.clip_text(text["layers"]),
        ties.Tie(("logit_scale",), ("logit_scale",)),
    )
    return Layout(library, "CLIPModel", part, tied)


def _config(clip: Clip) -> dict[str, Any]:
    """The config.json of a model of open_clip in transformers."""
    if written_for.is_siglip(clip.config):
        return written_for.siglip_config(clip.config, clip.model.get_submodule("visual"))
    return written_for.clip_config(clip.config)


def _open_clip(clip: Clip, layout: Layout, folder: Path) -> _Computed:
    config = copy.deepcopy(dict(clip.config))
    text, vision = config["model_cfg"]["text_cfg"], config["model_cfg"]["vision_cfg"]
    if str(vision.get("timm_model_name")).startswith("nsu_siglip"):
        vision["timm_model_name"] = _timm_name(clip, vision["timm_model_name"])
    if not (isinstance(clip.tokenizer, HFTokenizer) and written_for.is_clips_own(clip.tokenizer)):
        # open_clip looks for it in the folder that has the configuration.
        text["hf_tokenizer_name"] = clip.source.base_model or clip.source.name
        written_for.write_tokenizer(clip.tokenizer, text["context_length"], folder)
    tensors.write(folder / layout.weights, _stored(clip))
    (folder / layout.config).write_text(config_text(config), encoding="utf-8")
    try:
        again = load(folder, device=str(clip.device))
    except ValueError as error:
        raise ValueError(f"open_clip cannot load this model: {one_line(error)}") from None
    images = probe_inputs(clip.model, "visual")
    return {
        "visual": (clip.encode_image(images), again.encode_image(images)),
        "text": (clip.encode_text(_PROMPTS), again.encode_text(_PROMPTS)),
    }


def _timm_name(clip: Clip, own: str) -> str:
    """Timm's name of a SigLIP tower that `hugging_face` registered under one of its own."""
    from timm.models import is_model

    _, _, width, *_, patch, size, _, _ = own.split("_")
    called = {"768": "base", "1024": "large", "1152": "so400m", "1536": "giantopt"}.get(width)
    name = f"vit_{called}_patch{patch}_siglip_{size}"
    if not is_model(name):
        raise ValueError(f"open_clip has no image tower like that of {clip.source.name}")
    return name


def _transformers(clip: Clip, layout: Layout, folder: Path) -> _Computed:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "transformers is not installed: pip install 'nullspace-unlearn[hf]'"
        ) from None
    place = folder / layout.part
    place.mkdir(exist_ok=True)
    given = clip.source.layout
    kind: Any = getattr(transformers, layout.kind)
    if given.library != "open_clip" and clip.source.folder is not None:
        copy_about(clip.source.folder / given.part, place)
        (place / MODULES_NAME).unlink(missing_ok=True)
        shutil.copyfile(clip.source.folder / given.weights, folder / layout.weights)
    else:
        config = _config(clip)
        context = clip.config["model_cfg"]["text_cfg"].get("context_length", 77)
        written_for.write_tokenizer(clip.tokenizer, context, place)
        for name, said in (
            ("config.json", config),
            ("preprocessor_config.json", written_for.preprocessor_config(clip.config)),
        ):
            (place / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        with torch.device("meta"):
            shapes = {
                k: v.shape
                for k, v in kind(kind.config_class.from_dict(config)).state_dict().items()
            }
        stored = _stored(clip)
        if layout.kind == "CLIPModel":  # whose ties are named as in open_clip's own text tower
            stored = {name.removeprefix("text."): value for name, value in stored.items()}
        theirs = ties.to_theirs(layout.ties, stored, shapes)
        tensors.write(folder / layout.weights, theirs, {"format": "pt"})
    if layout.part:
        _write_modules(folder)
    called = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
    model = kind.from_pretrained(place, **{called: torch.float32}).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    length = clip.tokenizer(["a"]).shape[1]
    ids = tokenizer(
        list(_PROMPTS), padding="max_length", max_length=length, truncation=True,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    computed = {"text": (clip.encode_text(_PROMPTS).cpu(), _by(model, ids, "text"))}
    if layout.kind != "Siglip2Model":  # which takes patches
        images = probe_inputs(clip.model, "visual").cpu()
        computed["visual"] = (clip.encode_image(images).cpu(), _by(model, images, "visual"))
    return computed


def _write_modules(folder: Path) -> None:
    module = {"idx": 0, "name": "0", "path": _PART, "type": f"sentence_transformers.models.{_KIND}"}
    (folder / MODULES_NAME).write_text(json.dumps([module], indent=2) + "\n", encoding="utf-8")
    about = {"similarity_fn_name": "cosine"}
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


_KIND = "CLIPModel"


def _onnx(clip: Clip, _: Layout, folder: Path) -> _Computed:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install 'nullspace-unlearn[onnx]'"
        ) from None
    computed: dict[str, tuple[Tensor, Tensor]] = {}
    prompts = clip.tokenizer([*_PROMPTS]).cpu()
    model = copy.deepcopy(clip.model).cpu()
    sides: tuple[tuple[Side, str, str, str, Tensor], ...] = (
        ("visual", "image", "pixel_values", "image_embeds", probe_inputs(model, "visual")),
        ("text", "text", "input_ids", "text_embeds", prompts),
    )
    for side, name, given, made, inputs in sides:
        file, tower = folder / f"{name}.onnx", _Tower(model, side).eval()
        with torch.no_grad():
            torch.onnx.export(
                tower, (inputs[:2],), str(file), input_names=[given], output_names=[made],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), dynamo=True, opset_version=_OPSET,
                external_data=False, verbose=False,
            )  # fmt: skip
            rows = torch.cat([inputs, inputs.flip(0)])[:3]  # another number than it was made with
            expected = tower(rows)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        computed[side] = (expected, torch.from_numpy(session.run([made], {given: rows.numpy()})[0]))
    written_for.write_tokenizer(clip.tokenizer, prompts.shape[1], folder)
    said = {**clip.config["preprocess_cfg"], "size": list(clip.image_size)}
    text = json.dumps(said, indent=2) + "\n"
    (folder / "preprocess.json").write_text(text, encoding="utf-8")
    return computed


class _Tower(nn.Module):
    """A model whose forward pass is one of its sides."""

    def __init__(self, model: nn.Module, side: Side) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, inputs: Tensor) -> Tensor:
        return encode(self.model, inputs, self.side)


def _by(model: nn.Module, inputs: Tensor, side: Side) -> Tensor:
    with torch.inference_mode():
        return encode(model, inputs, side).float()


def _stored(clip: Clip) -> dict[str, Tensor]:
    """The model's tensors by open_clip's names, in the precision that its file has them in."""
    state, source = clip.model.state_dict(), clip.source
    if source.weights is None or source.weights.suffix != ".safetensors":
        return {name: value.cpu() for name, value in state.items()}
    held = load_file(source.weights)
    if source.layout.ties:
        held = ties.to_ours(source.layout.ties, held, {n: v.shape for n, v in state.items()})
    same = all(n in held and held[n].shape == value.shape for n, value in state.items())
    return held if same else {name: value.cpu() for name, value in state.items()}


def _about(clip: Clip, layout: Layout, path: Path, folder: Path) -> None:
    """What tells of edits, and the card."""
    origin, report = clip.source.folder, None
    for name in (RECIPE_NAME, REPORT_NAME, vocabulary.FILE_NAME):
        if origin is not None and (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
    if (folder / REPORT_NAME).is_file():
        report = read_json(folder / REPORT_NAME)
    named = path.resolve().name
    card = model_card(named, clip.history, clip.source.base_model, report, layout)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
