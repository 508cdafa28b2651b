"""`Layout`: how a folder keeps a model, whichever library it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nullspace_unlearn.clip.ties import Tie, to_theirs
from nullspace_unlearn.edit import Side

Library = Literal["open_clip", "transformers", "sentence-transformers", "onnx"]

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
HF_CONFIG_NAME = "config.json"
HF_WEIGHTS_NAME = "model.safetensors"
MODULES_NAME = "modules.json"
ONNX_NAME = "image.onnx"


@dataclass(frozen=True)
class Layout:
    """How a folder keeps a model.

    Attributes:
        library: What loads the folder.
        kind: The class that does, in transformers.
        part: The folder in it that holds the model's own files; "" for the folder itself.
        ties: Which of its tensors are which of the model's; empty where they have the same names.
        sides: The towers that it holds and that have a place for an edit.
    """

    library: Library = "open_clip"
    kind: str = "CLIP"
    part: str = ""
    ties: tuple[Tie, ...] = ()
    sides: tuple[Side, ...] = ("visual", "text")

    @property
    def weights(self) -> str:
        """The weights file's path in the folder."""
        return self._within(WEIGHTS_NAME if self.library == "open_clip" else HF_WEIGHTS_NAME)

    @property
    def config(self) -> str:
        """The configuration's path in the folder."""
        return self._within(CONFIG_NAME if self.library == "open_clip" else HF_CONFIG_NAME)

    def _within(self, name: str) -> str:
        return f"{self.part}/{name}" if self.part else name

    def check_side(self, side: Side) -> None:
        """Refuse an edit that could not be stored.

        Args:
            side: The tower it would change.

        Raises:
            ValueError: If the folder has no place for it; says what can be edited.
        """
        if side not in self.sides:
            able = " and ".join(self.sides)
            how = " (--side text --method avert)" if able == "text" else ""
            raise ValueError(
                f"a {self.kind} of {self.library} has no {side} projection to write an edit to; "
                f"its {able} side can be edited{how}"
            )

    def check_keys(self, keys: Iterable[str]) -> None:
        """Refuse tensors of a model that its folder does not hold.

        Args:
            keys: Their names in the model.

        Raises:
            ValueError: If one has no place there.
        """
        held = {one for tie in self.ties for one in tie.ours}
        if self.library != "open_clip" and (other := sorted(set(keys) - held)):
            raise ValueError(f"a {self.kind} of {self.library} has no place for {other[0]}")

    def check_whole(self) -> None:
        """Refuse a folder of one tower.

        Raises:
            ValueError: If it is one.
        """
        if self.kind in ("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection"):
            raise ValueError(f"a {self.kind} is one tower alone, and both are needed here")

    def loading(self, folder: str) -> str:
        """How a folder is loaded without this package, in a few words.

        Args:
            folder: The folder, as somebody types it.
        """
        if self.library == "open_clip":
            return f"load it as local-dir:{folder}"
        call = f"{self.kind}.from_pretrained" if self.library == "transformers" else _SENTENCES
        return f"load it with {call}({folder!r})"

    def names(self, keys: Sequence[str]) -> list[str]:
        """What the folder calls some of the model's tensors.

        Args:
            keys: Their names in the model.

        Returns:
            Their names in the folder; one of the model's may be several there.
        """
        theirs = {one: tie.theirs for tie in self.ties for one in tie.ours}
        return list(dict.fromkeys(name for key in keys for name in theirs.get(key, (key,))))

    def stored(
        self,
        changed: Mapping[str, Tensor],
        original: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
    ) -> dict[str, Tensor]:
        """Changed tensors as the folder stores them, those alone that differ.

        Args:
            changed: By their names in the model.
            original: All tensors of the model as they were, by the same names.
            shapes: Of the folder's tensors, by their names there.

        Returns:
            By their names in the folder.
        """
        if not self.ties:
            return dict(changed)
        ties = [tie for tie in self.ties if any(name in changed for name in tie.ours)]
        before = {name: original[name].cpu() for tie in ties for name in tie.ours}
        was, now = (to_theirs(ties, state, shapes) for state in (before, {**before, **changed}))
        return {
            name: value.contiguous()
            for name, value in now.items()
            if not torch.equal(value, was[name].to(value.dtype))
        }


_SENTENCES = "SentenceTransformer"

OPEN_CLIP = Layout()
