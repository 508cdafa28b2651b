"""Features of prompts, encoded once: in memory while a command runs, in a folder for the next one.

A full-size text tower spends most of a minute on the 3,000 prompts that a request under ImageNet's
names needs. What it gives for a prompt depends on the model and on the prompt's token ids, and
these are what a row is kept under: another tokenizer, template or name means other ids.

How many prompts are encoded together changes the last bits of each. So that a row is the same
whatever else was asked for, and whenever, batches are always of one shape here: so many prompts of
one length.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.fingerprint import Fingerprint, code_of, machine
from nullspace_unlearn.progress import progress
from nullspace_unlearn.sealed import read_sealed, write_sealed

_TOGETHER = 16  # prompts
_MOST = 1 << 15
"""Prompts kept of a model in the folder, the last ones: 64 MiB at 512 dimensions."""
_MANY = 1000  # prompts, from which a bar shows


class TextCache:
    """Features of the prompts of some models.

    Args:
        folder: Where they are kept for other processes; None for memory alone.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder) / "text"
        self._rows: dict[str, dict[bytes, Tensor]] = {}

    def encode(self, clip: Clip, prompts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Embed prompts, those that are not known yet.

        Args:
            clip: The model. One that has random weights is not kept.
            prompts: The prompts.

        Returns:
            `[n, dim]` float32 embeddings as `Clip.encode_text` gives them, up to rounding, on the
            CPU; the same bits whether they were known or not.
        """
        key = _model_key(clip)
        if key is None or not prompts:
            return clip.encode_text(prompts).cpu()
        if key not in self._rows:
            self._rows[key] = self._read(key)
        rows = self._rows[key]
        tokens = clip.tokenizer(list(prompts)).long()
        ids = [hashlib.sha256(row.numpy().tobytes()).digest() for row in tokens]
        new = {one: i for i, one in enumerate(ids) if one not in rows}
        if new:
            some = list(new.values())
            made = _encode_alike(clip, [prompts[i] for i in some], tokens[some])
            rows.update(zip(new, made, strict=True))
            self._write(key, rows)
        return torch.stack([rows[one] for one in ids])

    def _read(self, key: str) -> dict[bytes, Tensor]:
        """What the folder holds of a model; a damaged file is removed."""
        found: dict[bytes, Tensor] = {}
        for file in self._files(key):
            try:
                tensors, _ = read_sealed(file)
                ids = tensors["ids"].numpy()
                pairs = zip(ids, tensors["rows"], strict=True)
                found.update((one.tobytes(), row) for one, row in pairs)
            except FileNotFoundError:  # another process has just put a larger one in its place
                continue
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"{error}; its prompts are encoded again", stacklevel=2)
                with suppress(OSError):
                    file.unlink()
        return found

    def _write(self, key: str, rows: dict[bytes, Tensor]) -> None:
        """Keep rows, and those another process wrote meanwhile; if that fails it is no error."""
        if self.folder is None:
            return
        before = self._files(key)
        last = list({**self._read(key), **rows}.items())[-_MOST:]
        ids = torch.frombuffer(bytearray(b"".join(one for one, _ in last)), dtype=torch.uint8)
        tensors = {"ids": ids.reshape(len(last), -1), "rows": torch.stack([row for _, row in last])}
        try:
            written = write_sealed(self.folder, key, tensors)
            for file in before:
                if file != written:
                    file.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            warnings.warn(f"text features are not kept: {error}", stacklevel=2)

    def _files(self, key: str) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob(f"{key}-*.safetensors"))


_ACTIVE: ContextVar[TextCache | None] = ContextVar("text_cache", default=None)


@contextmanager
def cached_text(folder: str | Path | None = None) -> Iterator[TextCache]:
    """Encode every prompt once while this lasts, and none that the folder knows.

    Args:
        folder: Where features are kept, below `text/`; None for memory alone.

    Yields:
        The cache.
    """
    cache = TextCache(folder)
    token = _ACTIVE.set(cache)
    try:
        yield cache
    finally:
        _ACTIVE.reset(token)


def cache_in_use() -> TextCache | None:
    """The innermost `cached_text` that lasts, if any."""
    return _ACTIVE.get()


def _model_key(clip: Clip) -> str | None:
    """A hash of all that a prompt's feature depends on besides its token ids."""
    if clip.source.sha256 is None:
        return None
    made_from = Fingerprint(
        {
            "model": clip.fingerprint.only("weights", "edits.text", "model_cfg", "precision"),
            "machine": machine(clip.device),
            "code": code_of("prototypes.text_cache"),
        }
    )
    return made_from.digest[:32]


def _encode_alike(clip: Clip, prompts: Sequence[str], tokens: Tensor) -> Float[Tensor, "n dim"]:
    """Embed prompts in batches of one shape, filled up with copies."""
    # Towers that are spared the padding are cut behind this place (`clip.prompts`).
    ends = tokens.argmax(-1)
    groups = [(ends == end).nonzero()[:, 0] for end in ends.unique()]
    batches = [batch for group in groups for batch in group.split(_TOGETHER)]
    made = []
    hidden = None if len(prompts) > _MANY else True
    for batch in progress(batches, desc="encoding prompts", hidden=hidden, leave=False):
        some = [prompts[i] for i in batch.tolist()]
        full = some + some[:1] * (_TOGETHER - len(some))
        made.append(clip.encode_text(full).cpu()[: len(some)])
    rows = torch.cat(made)
    return torch.empty_like(rows).index_copy_(0, torch.cat(batches), rows)
