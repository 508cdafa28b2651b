"""Loading: from whatever a user names to a `Clip`, with open_clip's traps met on the way."""

from __future__ import annotations

import difflib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import open_clip
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from nullspace_unlearn import words as vocabulary
from nullspace_unlearn.clip import hugging_face
from nullspace_unlearn.clip.adapter import Stored, put_back, read_adapter
from nullspace_unlearn.clip.folder import read_history
from nullspace_unlearn.clip.layout import CONFIG_NAME, OPEN_CLIP, WEIGHTS_NAME, Layout
from nullspace_unlearn.clip.model import Clip
from nullspace_unlearn.clip.source import ADAPTER_NAME, BUNDLED, Source, config_text, one_line
from nullspace_unlearn.clip.ties import to_ours
from nullspace_unlearn.clip.trust import refuse_remote_code
from nullspace_unlearn.clip.weights import check_weights, load_weights, warn_of_resized
from nullspace_unlearn.files import read_text
from nullspace_unlearn.fingerprint import file_sha256
from nullspace_unlearn.history import History

PRECISIONS = ("fp32", "fp16", "bf16", "pure_fp16", "pure_bf16")
_PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".npy")


@dataclass(frozen=True)
class _Found:
    """What `load` resolved a name to, before anything is built."""

    config: dict[str, Any]
    weights: Path | None
    tokenizer: str
    folder: Path | None = None
    base_model: str | None = None
    text: str | None = None
    layout: Layout = OPEN_CLIP
    public: str | None = None
    beside: _Found | None = None
    """Where the other tower is, of a folder that holds one."""

    @property
    def files(self) -> tuple[tuple[Path, Layout], ...]:
        """The weights files, the model's own first."""
        own = () if self.weights is None else ((self.weights, self.layout),)
        return own if self.beside is None else (*own, *self.beside.files)


def load(
    name: str | Path,
    pretrained: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "fp32",
    cache_dir: str | None = None,
    base: str | Path | None = None,
) -> Clip:
    """Load a model for encoding and editing.

    Args:
        name: A built-in open_clip name ("ViT-B-32"), "hf-hub:org/repo", "local-dir:PATH", the path
            of a folder that holds an open_clip_config.json, or "nsu-mini", the bundled model; the
            folder of a CLIP or SigLIP of transformers or sentence-transformers
            (`hugging_face.KINDS`), or the "org/repo" it is downloaded from; or the path of a folder
            of visual prompts, to be put into the model it names.
        pretrained: For a built-in name, a tag or a weights file; without it, weights are random.
            For a folder of transformers that holds one tower, the model that has the other.
        device: "auto", "cpu", "cuda" or "cuda:i".
        precision: One of `PRECISIONS`.
        cache_dir: Where downloads are kept.
        base: For a folder of visual prompts, the model they belong to (with `pretrained`, as for
            `name`), if that is to be had elsewhere than they say; a local folder or file is looked
            for beside them.

    Returns:
        The model, frozen and in eval mode.

    Raises:
        ValueError: If an argument or a file is wrong: unknown model or tag, missing or damaged
            weights, pickled code, NaN or Inf, prompts of another model.
        RuntimeError: If a download or the construction of the model fails.
    """
    name, pretrained = str(name), None if pretrained is None else str(pretrained)
    prompts = Path(name.removeprefix("local-dir:"))
    if (prompts / ADAPTER_NAME).is_file() and not (prompts / CONFIG_NAME).exists():
        stored = read_adapter(prompts)
        named, tag = _base(stored) if base is None else (base, pretrained)
        clip = load(named, tag, device=device, precision=precision, cache_dir=cache_dir)
        return put_back(clip, stored)
    if base is not None:
        raise ValueError(f"base is {str(base)!r}, and {name!r} is no folder of visual prompts")
    where = _device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; allowed: {', '.join(PRECISIONS)}")
    found = _resolve(name, pretrained, cache_dir)
    if found.layout.library != "open_clip":
        found = _completed(name, found, pretrained, cache_dir)
    _check_precision(name, found.config["model_cfg"], precision)
    _check_trust(name, found, cache_dir)
    for file, layout in found.files:
        check_weights(file, _held(layout, found.config["model_cfg"]))
    sha256 = None if found.weights is None else file_sha256(found.weights)
    model = _build(name, found, where, precision)
    network: Any = model
    preprocess_cfg = network.visual.preprocess_cfg
    found.config.setdefault("preprocess_cfg", {})
    for key in _PREPROCESS_KEYS:
        found.config["preprocess_cfg"].setdefault(key, preprocess_cfg[key])
    public = found.public or _public_name(name, found.folder)
    tag = Path(pretrained).name if pretrained else None
    history = read_history(found.folder) if found.folder else None
    words_file = found.folder / vocabulary.FILE_NAME if found.folder else None
    return Clip(
        model=model,
        preprocess=image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False),
        tokenizer=_tokenizer(name, found, cache_dir),
        config=found.config,
        words=vocabulary.read_words(words_file) if words_file and words_file.exists() else None,
        device=where,
        source=Source(
            name=public,
            pretrained=tag,
            folder=found.folder,
            weights=found.weights,
            sha256=sha256,
            config=found.text or config_text(found.config),
            history=history or History(public, tag, sha256),
            base_model=found.base_model,
            layout=found.layout,
        ),
    )


def _public_name(name: str, folder: Path | None) -> str:
    return name if folder is None or name == BUNDLED else folder.resolve().name


def _base(stored: Stored) -> tuple[str, str | None]:
    """The model and tag or file that prompts belong to; local ones are beside their folder."""
    beside = stored.path.absolute().parent.parent
    model, pretrained = stored.model, stored.pretrained
    if Path(model).name == model and hugging_face.layout_of(beside / model) is not None:
        return f"local-dir:{beside / model}", None
    hub = (model.startswith("hf-hub:") and len(model) > len("hf-hub:")) or bool(
        _REPOSITORY.fullmatch(model)
    )
    if not hub and model.replace("/", "-") not in (BUNDLED, *open_clip.list_models()):
        raise ValueError(
            f"{stored.path} belongs to the model folder {model!r}, which is not in {beside}: put "
            "it there, or say where it is with base="
        )
    if pretrained and Path(pretrained).name == pretrained and (beside / pretrained).is_file():
        return model, str(beside / pretrained)
    return model, pretrained


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or (":" in device and not index.isdecimal())):
        raise ValueError(f"unknown device {device!r}; allowed: auto, cpu, cuda, cuda:i")
    count = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(index or 0) >= count:
        raise ValueError(f"device {device!r} is not there: torch sees {count} CUDA devices")
    return torch.device(device)


def _check_precision(name: str, model_cfg: Mapping[str, Any], precision: str) -> None:
    # open_clip's mixed precision feeds these text towers float32 where their weights are half.
    half_fails = "multimodal_cfg" in model_cfg or model_cfg["text_cfg"].get("hf_model_name")
    if half_fails and precision in ("fp16", "bf16"):
        raise ValueError(
            f"open_clip cannot run {name} at precision {precision!r}; allowed for CoCa and for "
            "Hugging Face text towers: fp32, pure_fp16, pure_bf16"
        )


def _check_trust(name: str, found: _Found, cache_dir: str | None) -> None:
    try:
        with _quiet():
            text = found.config["model_cfg"]["text_cfg"]
            refuse_remote_code(text, found.folder, cache_dir=cache_dir)
    except OSError as error:
        raise RuntimeError(f"cannot load {name}: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"cannot load {name}: {one_line(error)}") from None


def _resolve(name: str, pretrained: str | None, cache_dir: str | None) -> _Found:
    """Find configuration and weights without building anything."""
    if name == BUNDLED:
        from nullspace_unlearn.data.mini import MODEL_FOLDER

        return _resolve_folder(Path(MODEL_FOLDER), pretrained)
    scheme, colon, rest = name.partition(":")
    if colon and scheme in ("local-dir", "hf-hub"):
        if not rest:
            raise ValueError(f"model {name!r} names nothing after '{scheme}:'")
        if scheme == "local-dir":
            return _resolve_folder(Path(rest), pretrained)
        return _resolve_hub(rest, pretrained, cache_dir)
    builtin = name.replace("/", "-")
    if builtin in open_clip.list_models():
        return _resolve_builtin(builtin, pretrained, cache_dir)
    if Path(name).is_dir():
        return _resolve_folder(Path(name), pretrained)
    if _REPOSITORY.fullmatch(name):
        return _resolve_snapshot(name, name, cache_dir)
    known = [BUNDLED, *open_clip.list_models()]
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(builtin.casefold(), folded, n=4, cutoff=0.4)
    raise ValueError(
        f"unknown model {name!r}: it is no built-in name"
        + (f" (nearest: {', '.join(folded[n] for n in near)})" if near else "")
        + f" and no folder; allowed: {BUNDLED}, an open_clip name, a folder, local-dir:PATH, "
        "hf-hub:ORG/REPO, ORG/REPO of transformers"
    )


def _resolve_folder(folder: Path, pretrained: str | None) -> _Found:
    if not folder.is_dir():
        raise ValueError(f"model folder {str(folder)!r} does not exist")
    if hugging_face.looks_like_one(folder):
        return _of_hugging_face(folder)
    if pretrained:
        warnings.warn(
            f"pretrained={pretrained!r} is ignored: a model folder brings its own weights",
            stacklevel=4,
        )
    text, config = _read_config(folder / CONFIG_NAME)
    with _quiet():
        weights = _find_checkpoint_in_dir(folder)
    if weights is None:
        raise ValueError(f"model folder {str(folder)!r} holds no weights, such as {WEIGHTS_NAME}")
    return _Found(config, Path(weights), f"local-dir:{folder}", folder=folder, text=text)


_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _of_hugging_face(
    folder: Path, public: str | None = None, repository: str | None = None
) -> _Found:
    """A folder of transformers or sentence-transformers."""
    with _quiet():
        found = hugging_face.find(folder)
    return _Found(
        found.config,
        folder / found.layout.weights,
        str(found.part),
        folder=folder,
        base_model=repository,
        text=found.text,
        layout=found.layout,
        public=public,
    )


def _resolve_snapshot(name: str, repository: str, cache_dir: str | None) -> _Found:
    """What transformers or sentence-transformers loads from the hub."""
    try:
        with _quiet():
            folder = snapshot_download(
                repository, cache_dir=cache_dir, allow_patterns=list(hugging_face.DOWNLOADED)
            )
    except Exception as error:
        raise RuntimeError(f"cannot download {name}: {one_line(error)}") from None
    return _of_hugging_face(Path(folder), name, repository)


def _completed(name: str, found: _Found, pretrained: str | None, cache_dir: str | None) -> _Found:
    """A folder of one tower with the other, where one is named; a text tower may stay alone."""
    own = found.config["model_cfg"]
    missing = [tower for tower in ("vision_cfg", "text_cfg") if tower not in own]
    if not missing:
        if pretrained:
            warnings.warn(
                f"pretrained={pretrained!r} is ignored: {name} has both towers and its own weights",
                stacklevel=4,
            )
        return found
    lacks = "an image" if missing[0] == "vision_cfg" else "a text"
    if not pretrained:
        if missing[0] == "text_cfg":
            raise ValueError(
                f"{name} is an image tower alone, and names need the text tower that was trained "
                f"with it: give the model that has it with --pretrained"
            )
        config = {**found.config, "model_cfg": {**own, "vision_cfg": dict(_STUB)}}
        return replace(found, config=config)
    other = _resolve(pretrained, None, cache_dir)
    theirs = other.config["model_cfg"]
    if other.layout.library == "open_clip" or missing[0] not in theirs:
        raise ValueError(
            f"pretrained={pretrained!r} is no model of transformers that has {lacks} tower"
        )
    for key in ("embed_dim", "quick_gelu"):
        if own.get(key) != theirs.get(key):
            raise ValueError(
                f"{name} and {pretrained} do not belong together: {key} is {own.get(key)} and "
                f"{theirs.get(key)}"
            )
    config = {**found.config, "model_cfg": {**own, missing[0]: theirs[missing[0]]}}
    images = missing[0] == "vision_cfg"
    if images:
        config["preprocess_cfg"] = other.config["preprocess_cfg"]
    tower = tuple(t for t in other.layout.ties if t.ours[0].startswith("visual.") == images)
    other = replace(other, layout=replace(other.layout, ties=tower))
    tokenizer = found.tokenizer if images else other.tokenizer
    return replace(found, config=config, tokenizer=tokenizer, beside=other)


_STUB = {"image_size": 8, "patch_size": 8, "layers": 1, "width": 8, "head_width": 8}
"""The least image tower, which open_clip wants and a text tower alone has not."""


class _NoTower(nn.Module):
    """In place of an image tower that is not there."""

    def __init__(self, name: str, preprocess_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.preprocess_cfg = name, preprocess_cfg
        self.image_size = 0

    def forward(self, images: torch.Tensor) -> NoReturn:
        raise ValueError(
            f"{self.name} is a text tower alone, and takes no images: give the model that has the "
            "image tower with --pretrained"
        )


def _resolve_hub(repo: str, pretrained: str | None, cache_dir: str | None) -> _Found:
    if pretrained:
        warnings.warn(
            f"pretrained={pretrained!r} is ignored: hf-hub:{repo} brings its own weights",
            stacklevel=4,
        )
    try:
        with _quiet():
            file = download_pretrained_from_hf(repo, CONFIG_NAME, cache_dir=cache_dir)
            weights = download_pretrained_from_hf(repo, cache_dir=cache_dir)
    except EntryNotFoundError:  # not open_clip's
        return _resolve_snapshot(f"hf-hub:{repo}", repo, cache_dir)
    except Exception as error:
        raise RuntimeError(f"cannot download hf-hub:{repo}: {one_line(error)}") from None
    text, config = _read_config(Path(file))
    return _Found(config, Path(weights), f"hf-hub:{repo}", base_model=repo, text=text)


def _resolve_builtin(name: str, pretrained: str | None, cache_dir: str | None) -> _Found:
    config: dict[str, Any] = {"model_cfg": open_clip.get_model_config(name)}
    defaults = {key: value for key, value in asdict(PreprocessCfg()).items() if key != "size"}
    config["preprocess_cfg"] = {key: defaults[key] for key in _PREPROCESS_KEYS}
    if not pretrained:
        warnings.warn(f"{name} without pretrained weights: the weights are random", stacklevel=4)
        return _Found(config, None, name)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if tag:
        if tag.get("quick_gelu"):
            config["model_cfg"]["quick_gelu"] = True
        merged = merge_preprocess_dict(defaults, tag)
        config["preprocess_cfg"] = {key: merged[key] for key in _PREPROCESS_KEYS}
        try:
            with _quiet():
                weights = open_clip.download_pretrained(tag, cache_dir=cache_dir)
        except Exception as error:
            raise RuntimeError(
                f"cannot download {name} {pretrained!r}: {one_line(error)}"
            ) from None
        base = tag.get("hf_hub", "").rpartition("/")[0] or None
        return _Found(config, Path(weights), name, base_model=base)
    file = Path(pretrained)
    if file.is_dir():
        raise ValueError(
            f"pretrained={pretrained!r} is a folder; give the folder itself as the model"
        )
    if not file.exists():
        if file.suffix in _SUFFIXES or len(file.parts) > 1:
            raise ValueError(f"weights file {pretrained!r} does not exist")
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(
            f"unknown tag {pretrained!r} for {name}; allowed: {', '.join(tags) or 'none'}, or a "
            "weights file"
        )
    beside = file.parent / CONFIG_NAME
    if beside.exists():
        _, given = _read_config(beside)
        if "quick_gelu" in given["model_cfg"]:
            config["model_cfg"]["quick_gelu"] = given["model_cfg"]["quick_gelu"]
        merged = merge_preprocess_dict(defaults, given.get("preprocess_cfg", {}))
        config["preprocess_cfg"] = {key: merged[key] for key in _PREPROCESS_KEYS}
    else:
        activation = "quick-GELU" if config["model_cfg"].get("quick_gelu") else "GELU"
        warnings.warn(
            f"{pretrained} does not say how its images were preprocessed nor which activation it "
            f"was trained with: assuming {activation} and open_clip's defaults for {name}; put an "
            f"{CONFIG_NAME} beside it to say otherwise",
            stacklevel=4,
        )
    return _Found(config, file, name)


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """An open_clip_config.json, as text and parsed."""
    if not path.is_file():
        raise ValueError(f"model folder {str(path.parent)!r} holds no {path.name}")
    try:
        text = read_text(path)
        config = json.loads(text)
        parts = config["model_cfg"]
        if not all(isinstance(parts[key], dict) for key in ("vision_cfg", "text_cfg")):
            raise TypeError("vision_cfg and text_cfg must be objects")
        if not isinstance(parts["embed_dim"], int):
            raise TypeError("embed_dim must be an integer")
        if not isinstance(config.get("preprocess_cfg", {}), dict):
            raise TypeError("preprocess_cfg must be an object")
    except KeyError as error:
        raise ValueError(f"{path} is no open_clip configuration: it lacks {error}") from None
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no open_clip configuration: {one_line(error)}") from None
    return text, config


def _build(name: str, found: _Found, device: torch.device, precision: str) -> nn.Module:
    """Build the network as stock open_clip would from a folder, then load the weights."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG_NAME).write_text(config_text(found.config), encoding="utf-8")
        try:
            model = open_clip.create_model(
                f"local-dir:{folder}",
                load_weights=False,
                pretrained_text=found.weights is None,
                precision=precision,
                device="cpu",
            )
        except (OSError, ConnectionError) as error:
            raise RuntimeError(f"cannot build {name}: {one_line(error)}") from None
        except Exception as error:
            raise ValueError(
                f"cannot build {name} from its configuration: {one_line(error)}"
            ) from None
        if found.layout.library != "open_clip":
            _load_tied(model, found)
        elif found.weights is not None:
            load_weights(model, found.weights)
    if found.weights is not None:
        warn_of_resized(model, found.weights)
    # Random weights are not checked: open_clip leaves some of CoCa's decoder uninitialised.
    for key, value in model.state_dict().items() if found.weights else ():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(
                f"weights file {found.weights} holds NaN or Inf in {key}"
                + ("" if precision == "fp32" else f" at precision {precision}")
            )
    if found.config["model_cfg"]["vision_cfg"] == _STUB:
        network: Any = model
        network.visual = _NoTower(name, network.visual.preprocess_cfg)
    return model.to(device).eval().requires_grad_(False)


def _load_tied(model: nn.Module, found: _Found) -> None:
    """Load weights of transformers, those of a tower that is not there left as they are."""
    held = model.state_dict()
    shapes = {name: value.shape for name, value in held.items()}
    state: dict[str, torch.Tensor] = {}
    for file, layout in found.files:
        try:
            given = load_file(file)
            if lacking := [n for tie in layout.ties for n in tie.theirs if n not in given]:
                raise ValueError(f"it lacks {lacking[0]}")
            state = {**to_ours(layout.ties, given, shapes), **state}
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"cannot load weights file {file}: {one_line(error)}") from None
    alone = found.config["model_cfg"]["vision_cfg"] == _STUB
    for name in held.keys() - state.keys():
        if name == "logit_scale" or (alone and name.startswith("visual.")):
            state[name] = held[name]
    model.load_state_dict(state)


def _held(layout: Layout, model_cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration whose weights a file of transformers holds."""
    if layout.library == "open_clip":
        return model_cfg
    towers = {tie.ours[0].startswith("visual.") for tie in layout.ties if "." in tie.ours[0]}
    small = {"layers": 0, "width": 1, "vocab_size": 0}
    return {
        **model_cfg,
        "vision_cfg": model_cfg["vision_cfg"] if True in towers else _STUB,
        "text_cfg": model_cfg["text_cfg"] if False in towers else small,
    }


def _tokenizer(name: str, found: _Found, cache_dir: str | None) -> Any:
    text = found.config["model_cfg"]["text_cfg"]
    try:
        with _quiet():
            if found.layout.library != "open_clip":
                return _plain_tokenizer(found.tokenizer, text["context_length"])
            if not text.get("hf_tokenizer_name"):
                said = {"context_length": DEFAULT_CONTEXT_LENGTH, **text}
                return _clips_own(
                    said["context_length"], json.dumps(text.get("tokenizer_kwargs", {}))
                )
            return open_clip.get_tokenizer(
                found.tokenizer, cache_dir=cache_dir, trust_remote_code=False
            )
    except Exception as error:
        message = f"cannot load the tokenizer of {name}: {one_line(error)}"
        raise (ValueError if found.folder else RuntimeError)(message) from None


@lru_cache(maxsize=8)
def _clips_own(context_length: int, options: str) -> SimpleTokenizer:
    """CLIP's tokenizer, which open_clip brings along: its vocabulary read once, and each text.

    A prompt is looked at some four times before it is embedded, and mending its characters costs
    most of each.
    """
    tokenizer = SimpleTokenizer(context_length=context_length, **json.loads(options))
    tokenizer.encode = lru_cache(maxsize=1 << 16)(tokenizer.encode)
    return tokenizer


def _plain_tokenizer(folder: str, context_length: int) -> Any:
    """The tokenizer of transformers as open_clip calls one, the texts left as they are given."""
    tokenizer = open_clip.tokenizer.HFTokenizer(
        folder, context_length=context_length, trust_remote_code=False
    )
    tokenizer.clean_fn = str
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what open_clip and its dependencies log and warn about while they work."""
    root = logging.getLogger()
    handlers, disabled = list(root.handlers), logging.root.manager.disable
    # A handler keeps logging.info() from installing one of its own.
    root.addHandler(logging.NullHandler())
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
