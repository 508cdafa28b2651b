"""The output folder: what stock open_clip loads, how it explains itself, how it is undone."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nullspace_unlearn import words as vocabulary
from nullspace_unlearn.clip import hugging_face, tensors
from nullspace_unlearn.clip.card import model_card
from nullspace_unlearn.clip.layout import MODULES_NAME, ONNX_NAME, Layout
from nullspace_unlearn.clip.network import Change
from nullspace_unlearn.clip.source import (
    ADAPTER_NAME,
    CARD_NAME,
    RECIPE_NAME,
    REPORT_NAME,
    Source,
    config_text,
    one_line,
)
from nullspace_unlearn.clip.ties import to_ours
from nullspace_unlearn.clip.towers import GROWN
from nullspace_unlearn.files import (
    new_file,
    new_folder,
    read_json,
    read_text,
    refuse_existing,
    refuse_replacing,
)
from nullspace_unlearn.fingerprint import file_sha256
from nullspace_unlearn.header import parse_header, read_header
from nullspace_unlearn.history import History
from nullspace_unlearn.strict import plain_yaml, yaml_text

_MOST_OF_A_CARD = 1 << 20  # bytes that are read
_UNDO_FORMAT = "nullspace-unlearn undo 1"
_UNDO_FIELDS = ("original", "edited", "config", "header", "edits")
_ABOUT_THE_EDIT = (RECIPE_NAME, REPORT_NAME, CARD_NAME)
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "config.json",
)


@runtime_checkable
class Savable(Protocol):
    """What a folder is written from: the parts of a `Clip` that it takes."""

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, open_clip's."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The open_clip_config.json that describes it now."""
        ...

    @property
    def source(self) -> Source:
        """Where it came from."""
        ...

    @property
    def changes(self) -> tuple[Change, ...]:
        """What has been edited since, one entry a parameter."""
        ...

    @property
    def history(self) -> History:
        """What it was made to forget, before and since."""
        ...


@dataclass(frozen=True)
class Saved:
    """What an output folder says about itself.

    Attributes:
        folder: The folder.
        recipe: What was asked for; None if the folder does not say.
        report: What was measured; None if nothing was.
    """

    folder: Path
    recipe: Mapping[str, Any] | None
    report: Mapping[str, Any] | None


def save(
    clip: Savable,
    path: Path,
    overwrite: bool,
    undo: str | Path | None,
    report: Mapping[str, Any] | None,
    card: str | None,
) -> Path:
    """Write a model folder; see `Clip.save`."""
    undo = None if undo is None else Path(undo)
    check_outputs(clip.source, path, undo, overwrite)
    documents = dict(_documents(clip, path, report, card))
    # The undo file goes to its place last: it must not replace one whose folder is still there.
    bring_back = contextlib.nullcontext() if undo is None else new_file(undo, overwrite)
    with bring_back as undo_file, new_folder(path, overwrite) as folder:
        for name, text in documents.items():
            (folder / name).write_text(text, encoding="utf-8")
        _copy_companions(clip, folder)
        original = _original_weights(clip, folder)
        weights = folder / clip.source.layout.weights
        weights.parent.mkdir(exist_ok=True)
        tensors.rewrite(original, weights, _edited(clip, original))
        if undo_file is not None:
            _write_undo(clip, original, weights, undo_file)
        if original.parent == folder:
            original.unlink()
    return path


def _edited(clip: Savable, original: Path) -> dict[str, Tensor]:
    """What differs from the unedited model's file, by its names there."""
    state = clip.model.state_dict()
    changed = {change.key: change.current(state[change.key]) for change in clip.changes}
    shapes = {name: entry.shape for name, entry in read_header(original).entries.items()}
    return clip.source.layout.stored(changed, _original_tensors(clip), shapes)


def revert(
    folder: str | Path, undo: str | Path, output: str | Path, overwrite: bool = False
) -> Path:
    """Restore the model that an output folder was made from, bit for bit.

    Of several edits made one after another, each folder goes back to the one before it.

    Args:
        folder: The output folder.
        undo: The undo file written with it.
        output: Folder to write; with `overwrite` it may be `folder` itself.
        overwrite: Whether an existing model folder may be replaced.

    Returns:
        The restored folder.

    Raises:
        OutputExists: If `output` exists and `overwrite` is false.
        ValueError: If the undo file belongs to other weights or another configuration, or is
            damaged.
        OSError: If writing fails; nothing is left half-written.
    """
    folder, undo, output = Path(folder), Path(undo), Path(output)
    _check_replaceable(output, overwrite)
    said = read_header(undo).metadata
    if said.get("format") != _UNDO_FORMAT:
        raise ValueError(f"{undo} is not an undo file: its format is {said.get('format')!r}")
    if missing := [name for name in _UNDO_FIELDS if name not in said]:
        raise ValueError(f"{undo} is damaged: it lacks {', '.join(missing)}")
    layout = hugging_face.layout_of(folder) or Layout()
    edited = folder / layout.weights
    if not edited.is_file():
        raise ValueError(f"model folder {str(folder)!r} holds no {layout.weights}")
    _check_hash(edited, said["edited"], f"{undo} was written with other weights than {edited}")
    _check_config(folder / layout.config, undo, said["config"], said["header"])
    with new_folder(output, overwrite) as restored:
        weights = restored / layout.weights
        weights.parent.mkdir(exist_ok=True)
        tensors.reassemble(said["header"], undo, edited, weights)
        _check_hash(weights, said["original"], f"{undo} does not restore the original weights")
        (restored / layout.config).write_text(said["config"], encoding="utf-8")
        for name, text in _told_before(folder, output, said).items():
            (restored / name).write_text(text, encoding="utf-8")
        for file in model_files(folder):
            name = str(file.relative_to(folder))
            if name not in (layout.weights, layout.config, *_ABOUT_THE_EDIT):
                (restored / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, restored / name)
    return output


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a model folder, and of the folders in it that are modules of one.

    Args:
        folder: The folder; what is hidden in it, and other folders, are left out.
    """
    inside = [one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    for place in (folder, *(inside if (folder / MODULES_NAME).is_file() else ())):
        yield from sorted(
            file for file in place.iterdir() if file.is_file() and not file.name.startswith(".")
        )


def read_folder(path: str | Path) -> Saved:
    """Read what an output folder says about how it was made.

    Args:
        path: The folder.

    Returns:
        Its recipe and report, where it has them.

    Raises:
        ValueError: If it is not a model folder, or a file in it is malformed.
    """
    folder = Path(path)
    if not _is_ours(folder):
        raise ValueError(
            f"{str(folder)!r} is not a model folder: it holds no {Layout().config}, nor is it a "
            "CLIP of transformers"
        )
    read: dict[str, Mapping[str, Any] | None] = {}
    for name, parse in ((RECIPE_NAME, plain_yaml), (REPORT_NAME, _plain_json)):
        file = folder / name
        try:
            read[name] = parse(file) if file.exists() else None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} is malformed: {one_line(error)}") from None
        if not isinstance(read[name], dict | None):
            raise ValueError(f"{file} is malformed: it holds no mapping")
    return Saved(folder, read[RECIPE_NAME], read[REPORT_NAME])


def read_history(path: str | Path) -> History | None:
    """Read what a model folder says was done to the model.

    Args:
        path: The folder.

    Returns:
        The history; None where the folder has no recipe.yaml, or one that lists no edits.

    Raises:
        ValueError: If it has one that is malformed, since a later request would not know what to
            leave forgotten.
    """
    recipe = read_folder(path).recipe
    if recipe is None or "edits" not in recipe:
        return None
    try:
        return History.from_json(recipe)
    except ValueError as error:
        raise ValueError(f"{Path(path) / RECIPE_NAME} is malformed: {one_line(error)}") from None


def _plain_json(path: Path) -> Any:
    return read_json(path)


def check_outputs(source: Source, path: Path, undo: Path | None, overwrite: bool) -> None:
    """Refuse outputs that would destroy something, before any work is spent.

    Args:
        source: Where the model that is to be changed came from.
        path: The folder to write.
        undo: The undo file to write, if any.
        overwrite: Whether these may be replaced.

    Raises:
        OutputExists: If one exists and `overwrite` is false.
        ValueError: If the folder is no model folder or holds the model itself, or the undo file
            is inside the folder.
    """
    _check_replaceable(path, overwrite)
    weights = source.weights
    if weights is not None and weights.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"output {str(path)!r} holds the model that is being edited")
    if path.exists() and any(path.iterdir()) and not _was_written(path):
        raise ValueError(
            f"output {str(path)!r} is a model folder that was not written by this tool, so it is "
            "not replaced"
        )
    if undo is None:
        return
    if undo.resolve().is_relative_to(path.resolve()):
        raise ValueError(
            f"undo file {str(undo)!r} is inside the output folder; it brings back what was "
            "erased, so keep it elsewhere"
        )
    if weights is not None and undo.resolve() == weights.resolve():
        raise ValueError(f"undo file {str(undo)!r} is the weights file that is being edited")
    check_undo(undo, overwrite)


def check_undo(path: Path, overwrite: bool) -> None:
    """Refuse to write an undo file over anything but an older one.

    Args:
        path: The file to write.
        overwrite: Whether an older one may be replaced.

    Raises:
        OutputExists: If it exists and `overwrite` is false.
        ValueError: If it is another file.
    """
    refuse_replacing(path, overwrite, _UNDO_FORMAT.encode(), "undo file")


def _check_replaceable(path: Path, overwrite: bool) -> None:
    refuse_existing(path, overwrite)
    if not path.exists():
        return
    if not path.is_dir() or (any(path.iterdir()) and not _is_ours(path)):
        raise ValueError(f"output {str(path)!r} is not a model folder, so it is not replaced")
    if links := [file.name for file in path.iterdir() if file.is_symlink()]:
        raise ValueError(f"output {str(path)!r} holds a link, {links[0]!r}, so it is not replaced")


def _was_written(folder: Path) -> bool:
    """Whether a folder is one that erasing or training writes: its card says so."""
    try:
        return "nullspace-unlearn" in read_text(folder / CARD_NAME)
    except ValueError:
        return (folder / RECIPE_NAME).is_file() or (folder / ADAPTER_NAME).is_file()


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a model, the prompts of one, or one that was exported."""
    other = any((folder / name).is_file() for name in (ADAPTER_NAME, ONNX_NAME))
    return other or hugging_face.layout_of(folder) is not None


def _check_hash(file: Path, expected: str, problem: str) -> None:
    actual = file_sha256(file)
    if actual != expected:
        raise ValueError(f"{problem}: sha256 is {actual}, expected {expected}")


def _told_before(folder: Path, output: Path, said: Mapping[str, str]) -> dict[str, str]:
    """Recipe and card of a model that had been edited before; nothing where it had not."""
    history = read_history(folder)
    known = 0 if history is None else len(history.edits)
    before = int(said["edits"]) if said["edits"].isdecimal() else -1
    if not 0 <= before < max(known, 1):
        raise ValueError(
            f"the undo file goes back to {said['edits']} edits, and {folder} tells of {known}"
        )
    if history is None or before == 0:
        return {}
    history = replace(history, edits=history.edits[:before])
    texts = plain_texts(history.to_json(), None)
    layout = hugging_face.layout_of(folder) or Layout()
    return texts | {CARD_NAME: model_card(output.resolve().name, history, layout=layout)}


def _check_config(file: Path, undo: Path, text: str, header: str) -> None:
    """Refuse an undo file whose configuration is not the folder's, less what an edit adds to it."""
    if file.name != Layout().config:  # an edit adds nothing to it
        if read_text(file) != text:
            raise ValueError(f"{undo} holds another {file.name} than {file.parent}")
        return
    try:
        now = read_json(file)
        before = json.loads(text)
        if f"{GROWN}.weight" not in parse_header(header).entries:
            grown = now["model_cfg"]["vision_cfg"]
            for name in ("timm_proj", "timm_proj_bias"):
                grown.pop(name, None)
                before["model_cfg"]["vision_cfg"].pop(name, None)
        # What the original leaves unsaid of its preprocessing, loading has filled in.
        said = now["preprocess_cfg"]
        now["preprocess_cfg"] = {name: said[name] for name in before.get("preprocess_cfg", {})}
        before.setdefault("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{undo} is damaged, or {file.parent} is: {one_line(error)}") from None
    if now != before:
        raise ValueError(f"{undo} holds another {file.name} than {file.parent}")


def _documents(
    clip: Savable,
    path: Path,
    report: Mapping[str, Any] | None,
    card: str | None,
) -> Iterator[tuple[str, str]]:
    """The folder's text files: name and contents."""
    layout, history = clip.source.layout, clip.history
    if layout.library == "open_clip":
        yield layout.config, config_text(clip.config) if clip.changes else clip.source.config
    yield from plain_texts(history.to_json() if history.edits else None, report).items()
    if card is None:
        base_model = clip.source.base_model
        base = _card_beside(clip.source)
        card = model_card(path.resolve().name, history, base_model, report, layout, base)
    yield CARD_NAME, card


def _card_beside(source: Source) -> str | None:
    """The card in the folder that a model came from, where there is one."""
    file = None if source.folder is None else source.folder / CARD_NAME
    if file is None or not file.is_file() or file.stat().st_size > _MOST_OF_A_CARD:
        return None
    return file.read_text(encoding="utf-8", errors="replace")


def plain_texts(
    recipe: Mapping[str, Any] | None, report: Mapping[str, Any] | None
) -> dict[str, str]:
    """The text files of a recipe and a report, those that are given, by name.

    Args:
        recipe: Plain values.
        report: Finite plain JSON values.

    Raises:
        ValueError: If one holds other values.
    """
    texts = {}
    try:
        if recipe is not None:
            texts[RECIPE_NAME] = yaml_text(dict(recipe))
    except ValueError as error:
        raise ValueError(f"recipe holds more than plain values: {error}") from None
    try:
        if report is not None:
            texts[REPORT_NAME] = json.dumps(dict(report), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"report holds more than finite plain values: {error}") from None
    return texts


def _copy_companions(clip: Savable, folder: Path) -> None:
    """Tokenizer files where the configuration asks for them, and the vocabulary."""
    origin = clip.source.folder
    if clip.source.layout.library != "open_clip" and origin is not None:
        copy_about(origin, folder)
        return
    if origin and (origin / vocabulary.FILE_NAME).exists():
        shutil.copyfile(origin / vocabulary.FILE_NAME, folder / vocabulary.FILE_NAME)
    if not clip.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name"):
        return
    files = [f for glob in _TOKENIZER_FILES for f in (origin.glob(glob) if origin else ())]
    for file in files:
        shutil.copyfile(file, folder / file.name)
    if not files:
        clip.tokenizer.save_pretrained(folder)


def copy_about(origin: Path, folder: Path) -> None:
    """Copy all of a folder of transformers but its weights and what tells of edits.

    Weights may lie there in several formats, all but one of which nobody edits.

    Args:
        origin: The folder, or one of sentence-transformers.
        folder: Where to.

    Raises:
        OSError: If it cannot be written.
    """
    for file in model_files(origin):
        told = any(file.match(glob) for glob in hugging_face.FILES)
        if told and not file.name.endswith(".index.json") and file.name not in _ABOUT_THE_EDIT:
            copy = folder / file.relative_to(origin)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _original_weights(clip: Savable, folder: Path) -> Path:
    """A safetensors file of the unedited model: the one it came from, if it is that."""
    original, layout = _original_tensors(clip), clip.source.layout
    if clip.source.weights is not None and _holds(clip, original):
        return clip.source.weights
    if layout.library != "open_clip":
        raise RuntimeError(
            f"{clip.source.weights} does not hold what was loaded from it: it was replaced, or the "
            "model was changed otherwise than by edits"
        )
    path = folder / "original.safetensors"
    save_file(_separate(original), path, metadata={"format": "pt"})
    return path


def _original_tensors(clip: Savable) -> dict[str, Tensor]:
    state = dict(clip.model.state_dict())
    for change in clip.changes:
        if change.original is None:
            del state[change.key]
        else:
            state[change.key] = change.original.detach()
    return state


def _holds(clip: Savable, state: Mapping[str, Tensor]) -> bool:
    """Whether the model's safetensors file gives exactly these tensors, cast to their dtypes."""
    path, tied = clip.source.weights, clip.source.layout.ties
    if path is None or path.suffix != ".safetensors" or not path.is_file():
        return False
    if tied:
        shapes = {name: value.shape for name, value in state.items()}
        held = to_ours(tied, load_file(path), shapes)
        return all(
            torch.equal(value.to(state[n].dtype), state[n].cpu()) for n, value in held.items()
        )
    with safe_open(str(path), framework="pt") as file:
        return set(file.keys()) == state.keys() and all(
            torch.equal(file.get_tensor(key).to(value.dtype), value.cpu())
            for key, value in state.items()
        )


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, copied where two share memory, which the format cannot express."""
    seen: set[int] = set()
    separate = {}
    for key, value in state.items():
        value = value.cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        separate[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return separate


def _write_undo(clip: Savable, original: Path, edited: Path, undo: Path) -> None:
    header = read_header(original)
    metadata = {
        "format": _UNDO_FORMAT,
        "original": file_sha256(original),
        "edited": file_sha256(edited),
        "config": clip.source.config,
        "header": header.text,
        "edits": str(len(clip.source.history.edits)),
    }
    changed = [name for name in _edited(clip, original) if name in header.entries]
    tensors.extract(original, undo, changed, metadata)
