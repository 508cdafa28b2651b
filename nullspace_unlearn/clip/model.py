"""`Clip`: a loaded model with all that is needed to encode, to edit, and to write it out again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nullspace_unlearn import words as vocabulary
from nullspace_unlearn.clip import folder, folding
from nullspace_unlearn.clip.grid import grid_of
from nullspace_unlearn.clip.mlp import LastMlp, find_mlp
from nullspace_unlearn.clip.network import (
    Change,
    current,
    encode,
    input_dtype,
    record,
    replace_parameters,
)
from nullspace_unlearn.clip.projection import Projection, find, headless
from nullspace_unlearn.clip.prompts import encode_prompts
from nullspace_unlearn.clip.source import Source
from nullspace_unlearn.clip.visual_prompts import Adapter
from nullspace_unlearn.edit import Edit, Side, Space
from nullspace_unlearn.fingerprint import Fingerprint, of_tensors
from nullspace_unlearn.history import History
from nullspace_unlearn.progress import progress

_MANY = 1000  # prompts
_PROBE = ("a photo of a café.", "Sketch, 2 guitars: naïve über-ostrich!", "crème brûlée 漢字 😀")
"""Words on which two tokenizers are told apart."""


@dataclass(frozen=True, eq=False)
class Clip:
    """An open_clip model, frozen and in eval mode. Make one with `load`.

    Attributes:
        model: The network; its parameters do not require gradients.
        preprocess: PIL image -> `[3, rows, columns]` tensor, as for validation.
        tokenizer: List of strings -> `[n, context]` token ids.
        config: Contents of an open_clip_config.json ("model_cfg", "preprocess_cfg") from which
            stock open_clip rebuilds the model.
        words: The vocabulary found in the model's folder.
        device: Where the model is.
        source: Where it came from: name, folder, weights file, configuration as loaded.
        changes: What has been edited since, one entry a parameter.
        edits: How, one entry an edit, first to last, in plain JSON values.
        adapter: The visual prompts its image tower reads, if any; it can then not be edited.
    """

    model: nn.Module
    preprocess: Callable[[Any], Float[Tensor, "3 rows columns"]]
    tokenizer: Callable[[list[str]], Int[Tensor, "n context"]]
    config: Mapping[str, Any]
    words: vocabulary.Words | None
    device: torch.device
    source: Source
    changes: tuple[Change, ...] = ()
    edits: tuple[Mapping[str, Any], ...] = ()
    adapter: Adapter | None = None

    def __repr__(self) -> str:
        parameter = next(self.model.parameters())
        of = f", pretrained={self.source.pretrained!r}" if self.source.pretrained else ""
        done = len(self.history.edits)
        edits = f", edited {done} time{'s' * (done > 1)}" if done else ""
        dtype = str(parameter.dtype).removeprefix("torch.")
        return f"Clip({self.source.name!r}{of}, dim {self.dim}, {dtype} on {self.device}{edits})"

    @property
    def history(self) -> History:
        """What the model was made to forget, before it was loaded and since."""
        return reduce(History.then, self.edits, self.source.history)

    @property
    def changed(self) -> list[str]:
        """The parameters that have been edited since, by their names in the model's folder."""
        return self.source.layout.names([change.key for change in self.changes])

    @property
    def dim(self) -> int:
        """Dimension of the joint space."""
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of the images the model takes."""
        network: Any = self.model
        size = network.visual.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by before a softmax."""
        network: Any = self.model
        return float(network.logit_scale.detach().float().exp())

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What features of this model depend on, besides what is embedded and on what machine.

        Facts: "weights", the hash of the weights file (of all parameters where there is none);
        "edits", the hash of the parameters of each tower that were changed since; "model_cfg" with
        its activation; "preprocessing"; "tokenizer", a hash of the ids that it gives for a few
        words; "adapter", the hash of visual prompts; "precision", the dtypes of the parameters.
        """
        held = self.model.state_dict()
        edits: dict[str, str | None] = {"visual": None, "text": None}
        for side in {change.side for change in self.changes}:
            keys = [change.key for change in self.changes if change.side == side]
            edits[side] = of_tensors({key: held[key] for key in keys})
        dtypes = {str(p.dtype).removeprefix("torch.") for p in self.model.parameters()}
        adapter = None if self.adapter is None else of_tensors(self.adapter.prompts.state_dict())
        size = list(self.image_size)
        return Fingerprint(
            {
                "weights": self.source.sha256 or f"random, {of_tensors(held)}",
                "edits": edits,
                "model_cfg": {"quick_gelu": False, **self.config["model_cfg"]},
                "preprocessing": {**self.config["preprocess_cfg"], "size": size},
                "tokenizer": of_tensors({"ids": self.tokenizer(list(_PROBE)).long()}),
                "adapter": adapter,
                "precision": "+".join(sorted(dtypes)),
            }
        )

    def normalise(self, pixels: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
        """Take RGB pixels to what the image tower wants, as the last step of `preprocess` does.

        Args:
            pixels: `[*n, 3, rows, columns]`, from 0 to 1, on any device; gradients flow through.

        Returns:
            `[*n, 3, rows, columns]`, on the model's device.
        """
        config = self.config["preprocess_cfg"]
        mean, std = (torch.tensor(config[name], device=self.device) for name in ("mean", "std"))
        return (pixels.to(self.device) - mean[:, None, None]) / std[:, None, None]

    def encode_image(self, images: Float[Tensor, "n 3 rows columns"]) -> Float[Tensor, "n dim"]:
        """Embed preprocessed images.

        Args:
            images: `[n, 3, rows, columns]`, on any device.

        Returns:
            `[n, dim]` float32 embeddings z, not normalised, on the model's device.
        """
        return self._embed(encode, self.model, self._images(images))

    def hidden_image(self, images: Float[Tensor, "n 3 rows columns"]) -> Float[Tensor, "n width"]:
        """Compute the feature h that enters the final visual projection.

        Args:
            images: `[n, 3, rows, columns]`, on any device.

        Returns:
            `[n, width]` float32, with `z = h W + b` for `projection("visual")`. A tower that ends
            in attention pooling has W = I, so h is z.

        Raises:
            ValueError: If the model has no visual projection that could be edited.
        """
        return self._embed(encode, self._headless, self._images(images))

    def encode_both(
        self, images: Float[Tensor, "n 3 rows columns"]
    ) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n dim"]]:
        """The hidden feature h and the embedding z of images, from one forward pass.

        Args:
            images: `[n, 3, rows, columns]`, on any device.

        Returns:
            h as `hidden_image` gives it, and `z = h W + b` in float32: what `encode_image` gives up
            to rounding.

        Raises:
            ValueError: If the model has no visual projection.
        """
        hidden = self.hidden_image(images)
        return hidden, self.project(hidden)

    def read_inner(self, space: Space, images: Float[Tensor, "n 3 rows columns"]) -> Any:
        """Read images from a layer before the final projection on, in one forward pass.

        Args:
            space: "mlp" or "value".
            images: `[n, 3, rows, columns]`, on any device.

        Returns:
            What an edit of that space reads and what follows it, up to the embedding z
            (`folding.Seen`; `MlpFeatures`, `ValueFeatures`), in float32, on the model's device.

        Raises:
            ValueError: If the model has no such layer; says which models have.
        """
        with torch.no_grad():
            return self.inner(space).read(self._headless, self._images(images))

    def project(self, hidden: Float[Tensor, "*any width"]) -> Float[Tensor, "*any dim"]:
        """Take hidden features of the image tower through its final projection, `z = h W + b`.

        Args:
            hidden: `[*any, width]`, of any floating dtype, on any device.

        Returns:
            `[*any, dim]` embeddings of the same dtype, on the same device.

        Raises:
            ValueError: If the model has no visual projection.
        """
        return self.projection("visual").apply(hidden)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "n dim"]:
        """Embed prompts.

        Args:
            texts: The prompts; each is cut to the context length.
            batch_size: Prompts per forward pass.

        Returns:
            `[n, dim]` float32 embeddings t, not normalised, on the model's device.

        Raises:
            ValueError: If `texts` is a single string, or `batch_size` is not positive.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, got the string {texts!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        starts = range(0, len(texts), batch_size)
        # A bar where it takes long and somebody looks: None asks whether stderr is a terminal.
        hidden = None if len(texts) > _MANY else True
        parts = [
            self._embed(encode_prompts, self.model, self.tokenizer(list(texts[i : i + batch_size])))
            for i in progress(starts, desc="encoding prompts", hidden=hidden, leave=False)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)

    def visible(self, text: Float[Tensor, "*any dim"]) -> Float[Tensor, "*any dim"]:
        """Text features less what no image of this model shows.

        An edit that removed a direction k left `z k = 0` for every image, so k plays no part in any
        score. An edit `M = I - read writeᵀ` made from what is left has `writeᵀ k = 0`, so `M k = k`
        and `z M k = 0`: what was forgotten stays forgotten, and a certificate, which is
        `z (t_c - Σ a_k t_k) = 0` on every image, holds on every image of the next model too.

        Args:
            text: `[*any, dim]` text features, of any floating dtype, on any device.

        Returns:
            The same, if the model was never edited; else with the same scores on every image.
        """
        if not self.history.edits:
            return text
        unseen = self.unseen.to(text)
        return text - (text @ unseen) @ unseen.mT

    def projection(self, side: Side = "visual") -> Projection:
        """The final projection of a tower.

        Args:
            side: The tower, "visual" or "text".

        Returns:
            Where it is stored, and its weights.

        Raises:
            ValueError: If that side has none; says which side can be edited.
        """
        return find(self.model, side)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """What an edit of the image tower can read."""
        return folding.spaces(self.model) if "visual" in self.source.layout.sides else ()

    def check_side(self, side: Side) -> None:
        """Refuse an edit that the model's folder has no place for, before any work is spent on it.

        Args:
            side: The tower it would change.

        Raises:
            ValueError: If there is none; says which side can be edited.
        """
        self.source.layout.check_side(side)

    def inner(self, space: Space) -> folding.Inner:
        """The layer before the final projection that a space is what enters.

        Args:
            space: "mlp" or "value".

        Raises:
            ValueError: If it cannot be reached; says which models have it.
        """
        return folding.INNER[space](self.model)

    def last_mlp(self) -> LastMlp:
        """The MLP of the image tower's last block, one step before the final projection.

        Returns:
            Where its output layer is stored, and what follows it.

        Raises:
            ValueError: If it cannot be reached; says which models' can.
        """
        return find_mlp(self.model)

    def fold(self, edit: Edit, side: Side = "visual") -> Clip:
        """Write an edit into the end of a tower, verified by a forward pass.

        Args:
            edit: One edit, of the tower's final projection or of a deeper space of the image
                tower (`folding.PLACES`).
            side: The tower to change.

        Returns:
            An edited copy that shares every other tensor with this model. An edit that removes
            nothing returns this very model.

        Raises:
            ValueError: If the edit does not fit that side or overflows the model's dtype, or the
                model has visual prompts.
            RuntimeError: If the edited tower does not compute what the edit says.
        """
        self._refuse_adapter("edited")
        self.check_side(side)
        model, changes = folding.fold(self.model, edit, side, self.changes)
        if model is self.model:
            return self
        config = copy.deepcopy(dict(self.config))
        if any(change.original is None for change in changes):
            # The projection that was added is built by stock open_clip if the config asks for it.
            vision = config["model_cfg"]["vision_cfg"]
            vision["timm_proj"] = "linear"
            vision.pop("timm_proj_bias", None)
        changed = [change.key for change in changes if change not in self.changes]
        said: dict[str, Any] = {"side": side, "parameter": self.source.layout.names(changed)}
        said["invertible"] = folding.invertible(edit)
        if not said["invertible"]:
            said["noise"] = self._grid(changed)
        edits = (*self.edits, {**said, **edit.provenance})
        return replace(self, model=model, config=config, changes=changes, edits=edits)

    def with_parameters(self, new: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> Clip:
        """Replace parameters by others of their shape, such as trained ones.

        Args:
            new: Parameters by name in the model's state_dict, of any floating dtype.
            provenance: How they came to be; plain JSON values.

        Returns:
            A copy that shares every other tensor with this model.

        Raises:
            ValueError: If a name is unknown, a shape differs, a value is not finite, or the model
                has visual prompts.
        """
        self._refuse_adapter("edited")
        held = dict(self.model.named_parameters())
        for key, value in new.items():
            if key not in held or held[key].shape != value.shape:
                is_ = list(held[key].shape) if key in held else "no such parameter"
                raise ValueError(f"{key} {list(value.shape)} cannot be replaced: there is {is_}")
            if not torch.isfinite(value).all():
                raise ValueError(f"{key} holds NaN or Inf, so it is not put in place")
        # Copies, so that training on does not change them, on the CPU, where changes are kept.
        new = {key: v.detach().cpu().to(torch.float64, copy=True) for key, v in new.items()}
        changes = self.changes
        for side, visual in (("visual", True), ("text", False)):
            some = {key: v for key, v in new.items() if key.startswith("visual.") == visual}
            changes = record(self.model, some, cast(Side, side), changes)
        sides = {"visual" if key.startswith("visual.") else "text" for key in new}
        self.source.layout.check_keys(new)
        side = "both" if len(sides) == 2 else min(sides, default="visual")
        edits = (
            *self.edits,
            {"side": side, "parameter": self.source.layout.names(list(new)), **provenance},
        )
        model = replace_parameters(self.model, new)
        return replace(self, model=model, changes=changes, edits=edits)

    def save(
        self,
        path: str | Path,
        overwrite: bool = False,
        undo: str | Path | None = None,
        report: Mapping[str, Any] | None = None,
        card: str | None = None,
    ) -> Path:
        """Write a folder that stock open_clip loads as `local-dir:PATH`.

        A model of transformers or sentence-transformers is written as one that these load. The
        folder's recipe.yaml holds the model's history, and is read when the folder is loaded.

        Args:
            path: The folder to write.
            overwrite: Whether an existing model folder (and undo file) may be replaced.
            undo: File to put the original bytes of the changed tensors in, outside the folder.
            report: What was measured, written to report.json.
            card: Text of README.md; one is written from the other arguments if absent.

        Returns:
            The folder.

        Raises:
            OutputExists: If the folder or the undo file exists and `overwrite` is false.
            ValueError: If an argument cannot be used, or the model has visual prompts.
            OSError: If writing fails; nothing is left half-written.
        """
        self._refuse_adapter("saved as a model folder")
        return folder.save(self, Path(path), overwrite, undo, report, card)

    def _refuse_adapter(self, what: str) -> None:
        if self.adapter is not None:
            raise ValueError(
                f"a model with visual prompts cannot be {what}: its weights do not hold them; "
                "`save_adapter` writes them to a folder of their own"
            )

    def _grid(self, keys: Sequence[str]) -> str | None:
        """Of what 16-bit numbers some parameters consist, before they are edited."""
        held = dict(self.model.named_parameters())
        grids = [grid_of(current(self.changes, key, held[key])) for key in keys if key in held]
        return next((str(grid).removeprefix("torch.") for grid in grids if grid), None)

    @cached_property
    def unseen(self) -> Float[Tensor, "dim r"]:
        """`[dim, r]` the directions of the joint space that no image shows; `Projection.unseen`."""
        try:
            return self.projection("visual").exact(partial(current, self.changes)).unseen()
        except ValueError:
            return torch.zeros(self.dim, 0, dtype=torch.float64)

    @cached_property
    def _headless(self) -> nn.Module:
        return headless(self.model)

    def _images(self, images: Tensor) -> Tensor:
        return images.to(self.device, input_dtype(self.model))

    def _embed(
        self, encode: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, inputs: Tensor
    ) -> Tensor:
        with torch.inference_mode():
            features = encode(model, inputs.to(self.device))
        # An inference tensor could not enter a later gradient computation; its copy can.
        return features.to(torch.float32, copy=True).clone()
