"""transformers' CLIPs and SigLIPs, small enough to build in a moment. Imports nothing of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SIZE, DIM = 32, 12
WORDS = "a photo of the cat dog car tree sketch truck drawing painting".split()
PROMPTS = ["a photo of the cat", "dog", "a car of the tree tree"]

_TOWER = {"hidden_size": 16, "intermediate_size": 36, "num_attention_heads": 2}
_IMAGE = {**_TOWER, "num_hidden_layers": 2, "patch_size": 16}
_TEXT = {**_TOWER, "num_hidden_layers": 2, "max_position_embeddings": 16}
_IDS = {"vocab_size": 24, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip_config(**text: Any) -> CLIPConfig:
    """A configuration whose towers differ in activation, width and epsilon from the defaults."""
    image = {**_IMAGE, "hidden_size": 24, "image_size": SIZE, "hidden_act": "gelu"}
    return CLIPConfig(
        vision_config={**image, "projection_dim": DIM, "layer_norm_eps": 1e-6},
        text_config={**_TEXT, **_IDS, "hidden_act": "gelu", "projection_dim": DIM, **text},
        projection_dim=DIM,
    )


def build(kind: str, **text: Any) -> PreTrainedModel:
    """A random model of transformers, whose features differ from input to input.

    Args:
        kind: Its class.
        **text: Of the text tower's configuration.
    """
    torch.manual_seed(0)
    config = clip_config(**text)
    if kind == "CLIPModel":
        model: Any = CLIPModel(config)
    elif kind == "CLIPTextModelWithProjection":
        model = CLIPTextModelWithProjection(config.text_config)
    elif kind == "CLIPVisionModelWithProjection":
        model = CLIPVisionModelWithProjection(config.vision_config)
    elif kind == "SiglipModel":
        both = {"vision_config": {**_IMAGE, "image_size": SIZE}, "text_config": {**_TEXT, **_IDS}}
        model = SiglipModel(SiglipConfig(**both))
    else:
        image = {**_IMAGE, "num_patches": 4}
        both = {"vision_config": image, "text_config": {**_TEXT, **_IDS, "vocab_size": 64}}
        model = Siglip2Model(Siglip2Config(**both))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim >= 2:
                value.normal_(std=value[0].numel() ** -0.5)
            elif not name.startswith("logit"):
                value.add_(torch.randn_like(value), alpha=0.3)
    return model.eval()


def write(kind: str, folder: Path, **text: Any) -> Path:
    """Write a folder as transformers does: model, tokenizer, preprocessing, and a card.

    Args:
        kind: The model's class.
        folder: The folder to make.
        **text: Of the text tower's configuration.
    """
    build(kind, **text).save_pretrained(folder)
    if kind != "CLIPVisionModelWithProjection":
        eos = text.get("eos_token_id", 1)
        end = _IDS["vocab_size"] - 1 if eos == 2 else eos  # as in models before 2023
        made = _spelling() if kind == "Siglip2Model" else _tokenizer(kind, end)
        made.save_pretrained(folder)
    if kind == "SiglipModel":
        SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    elif kind == "Siglip2Model":
        Siglip2ImageProcessor(patch_size=16, max_num_patches=4).save_pretrained(folder)
    elif kind.startswith("CLIP") and "Text" not in kind:
        size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
        CLIPImageProcessor(**size, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    (folder / "README.md").write_text("# As it was\n")
    return folder


def write_sentence_transformers(folder: Path) -> Path:
    """Write a folder as sentence-transformers does: CLIP in a folder of its own."""
    folder.mkdir()
    write("CLIPModel", folder / "0_CLIPModel")
    kind = "sentence_transformers.models.CLIPModel"
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": kind}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    return folder


def _tokenizer(kind: str, end: int) -> PreTrainedTokenizerFast:
    ids = {"<s>": 0, "</s>": end, "<unk>": 2, **{word: i for i, word in enumerate(WORDS, 3)}}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start = "<s> " if kind.startswith("CLIP") else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A </s>", special_tokens=[("<s>", 0), ("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        unk_token="<unk>", model_max_length=16,
    )  # fmt: skip


def _spelling() -> PreTrainedTokenizerBase:
    """The tokenizer of SigLIP 2: texts in lower case, `▁` for a blank, merges within words."""
    said = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
    letters = sorted({letter for word in WORDS for letter in word})
    starts = [word[:n] for word in WORDS for n in range(2, len(word) + 1)]
    ids = {**said, **{t: i for i, t in enumerate(dict.fromkeys(["▁", ".", *letters, *starts]), 5)}}
    merges = dict.fromkeys((word[:n], word[n]) for word in WORDS for n in range(1, len(word)))
    # Before transformers 5 there is none of its name, and the model's configuration asks for none.
    kind = getattr(transformers, "Siglip2Tokenizer", None)
    if kind is None:
        return _tokenizer("Siglip2Model", 1)
    made = kind(vocab=ids, merges=list(merges), padding_side="right", model_max_length=16)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return made


def images(count: int = 4, size: int = SIZE) -> torch.Tensor:
    """The same random images every time."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def features(
    folder: Path, prompts: Sequence[str] = PROMPTS, length: int = 16, size: int = SIZE
) -> dict[str, torch.Tensor]:
    """What stock transformers computes from a folder, on random images and a few prompts."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    made = {}
    with torch.no_grad():
        if "Vision" not in kind:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            ids = tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True,
                return_tensors="pt",
            ).input_ids  # fmt: skip
            made["text"] = _told(model, ids, "text")
        if "Text" not in kind:
            made["image"] = _told(model, images(size=size), "image")
    return made


def _told(model: Any, inputs: torch.Tensor, side: str) -> torch.Tensor:
    if isinstance(model, Siglip2Model) and side == "image":
        values = patches(inputs)
        shape = torch.full((len(inputs), 2), SIZE // 16)
        mask = torch.ones(values.shape[:2], dtype=torch.long)
        given = {"pixel_values": values, "spatial_shapes": shape, "pixel_attention_mask": mask}
        made = model.get_image_features(**given)
        return made if isinstance(made, torch.Tensor) else made.pooler_output
    if hasattr(model, "get_text_features"):
        made = (
            model.get_text_features(input_ids=inputs)
            if side == "text"
            else model.get_image_features(pixel_values=inputs)
        )
        return made if isinstance(made, torch.Tensor) else made.pooler_output
    return model(inputs).text_embeds if side == "text" else model(inputs).image_embeds


def patches(images: torch.Tensor) -> torch.Tensor:
    """Images `[n, 3, rows, columns]` cut as SigLIP 2 takes them."""
    cut = images.unfold(2, 16, 16).unfold(3, 16, 16)  # n, channels, rows, columns, 16, 16
    return cut.permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)


def picture() -> Image.Image:
    """A picture that is neither square nor of the size that towers take."""
    rows, columns, _ = np.mgrid[:48, :64, :3]
    waves = np.sin(rows / 5) + np.cos(columns / 7)
    return Image.fromarray((60 * waves + 127).astype(np.uint8))


def sentences(folder: Path) -> dict[str, torch.Tensor]:
    """What stock sentence-transformers computes from a folder, on a picture and a few prompts."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    given = {"text": PROMPTS, "image": [picture()]}
    return {n: model.encode(v, convert_to_tensor=True).cpu() for n, v in given.items()}
