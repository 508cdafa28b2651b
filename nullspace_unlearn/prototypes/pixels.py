"""Visual prototypes from the model alone: pictures of a cell, found by ascent on the pixels."""

from __future__ import annotations

import copy
import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from threading import Event

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from nullspace_unlearn.clip import Clip, encode
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import encode_all, made_with
from nullspace_unlearn.files import new_file, refuse_existing
from nullspace_unlearn.fingerprint import Fingerprint, code_of, machine, of_tensors
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.progress import progress
from nullspace_unlearn.prototypes.starts import start
from nullspace_unlearn.prototypes.text import cell_prototypes, checked_grid

_FIRST, _SECOND = 0.9, 0.99  # Adam's decay rates; the second is short, as the ascent is
_TINY = 1e-12
_NAMED = 6
_AT_ONCE = 2


@dataclass(frozen=True)
class Synthesis:
    """How pictures of a cell are found.

    The defaults were chosen on training images of two small models of PACS and on pictures of the
    bundled model. Step size hardly matters there, since each picture stops by itself; more pictures
    a cell still help a little (8 or 16) and cost as much more.

    Attributes:
        each: Pictures of a cell; of every four, two start as clouds and two as paper.
        steps: Steps of ascent at most.
        step_size: Adam's step; a pixel's range is 1.
        seed: Of the pictures the ascent starts from.
        batch_size: Pictures ascended at once; it changes nothing but rounding.
    """

    each: int = 4
    steps: int = 30
    step_size: float = 0.01
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("each", 1), ("steps", 0), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must lie in (0, 1], got {self.step_size!r}")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures found by `synthesise`, and what the model makes of them.

    Attributes:
        features: Embeddings and hidden features of `images`, float32 on the CPU, with the class
            and domain each stands for; samples of a cell follow each other.
        images: `[n, 3, rows, columns]` RGB, 0 to 255.
        reached: `[n]`, whether the model names the picture's own cell among all cells.
    """

    features: Features
    images: UInt8[Tensor, "n 3 rows columns"]
    reached: Bool[Tensor, " n"]

    def warning(self) -> str | None:
        """Say which cells no picture stands for, on one line.

        Returns:
            The line, naming cells none of whose pictures the model takes for them; None where
            there is no such cell.
        """
        f = self.features
        assert f.domains is not None  # pictures of cells have them
        shown = zip(f.labels.tolist(), f.domains.tolist(), self.reached.tolist(), strict=True)
        cells: dict[str, bool] = {}
        for c, d, reached in shown:
            name = f"{f.class_names[c]}/{f.domain_names[d]}"
            cells[name] = cells.get(name, False) or reached
        missed = [cell for cell, reached in cells.items() if not reached]
        if not missed:
            return None
        more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
        return (
            f"the model takes no synthesised picture for its own cell in {len(missed)} of "
            f"{len(cells)} cells: {', '.join(missed[:_NAMED])}{more}"
        )


def synthesise(
    clip: Clip,
    classes: Sequence[str],
    domains: Mapping[str, str],
    templates: Sequence[str],
    synthesis: Synthesis | None = None,
    *,
    only: Bool[Tensor, "classes domains"] | None = None,
    cache: str | Path | None = None,
    quiet: bool = False,
) -> Pictures:
    """Make pictures that stand for each cell, from the model alone, by gradient ascent on pixels.

    The idea is that of arXiv 2512.14113: ascend the cosine of a picture's embedding with the cell's
    text prototype. Four things bring the features of what comes out nearer to those of real images
    of the cell (the pictures still look like where they started):

    - The ascent is towards what sets the cell apart, `t - mean of all cells' t`: the part that all
      prompts share is not the part that all images share.
    - It is short, and stops for each picture once the model tells it from the other cells as
      surely as it does the cell's own prompt. Going on moves the features away from real ones.
    - Starting pictures differ within a cell, so that their mean forgets where it started from...
    - ... and are the same in every cell, so that what is left of them cancels between cells.

    Adam (Kingma & Ba 2015) takes the steps, in float32 (on a float32 copy of a model of another
    precision), and on each picture alone: the batch size changes nothing but rounding. What is
    returned is measured afterwards, from the 8-bit pictures and by the model as it is.

    Args:
        clip: The model. It is not changed, and none of its parameters gathers a gradient.
        classes: Names of the classes.
        domains: Key of each domain -> the word prompts use for it.
        templates: Templates holding `{class}` and `{domain}`.
        synthesis: The numbers of the synthesis.
        only: True for the cells to make pictures of; absent: all. The others still count as what a
            cell is to be told apart from.
        cache: Folder where each finished picture is kept as a PNG file, and looked for first: an
            interrupted call takes up where it stopped. The file's name is a hash of all that it
            depends on: the model, the words, the numbers, code and machine. Damaged files are made
            anew.
        quiet: Whether to leave out the progress bar on stderr.

    Returns:
        `each` pictures a cell, in the order of classes, domains, samples.

    Raises:
        ValueError: If a name or template is malformed, there are fewer than two cells, the image
            tower passes no gradient (or NaN, or Inf) to the pixels, its embeddings are not finite,
            the model has no visual projection, or the cache cannot be written.
    """
    synthesis = synthesis or Synthesis()
    classes, words, templates = checked_grid(
        "pictures of a cell are found by what sets it apart from other cells",
        classes,
        domains,
        templates,
    )
    clip.projection("visual")  # refuses a model without one before any work is done
    if cache is not None:
        refuse_existing(Path(cache) / "picture", overwrite=True)
    grid = cell_prototypes(clip, classes, words, templates)
    targets = grid.reshape(-1, grid.shape[-1])
    made = torch.arange(len(targets)) if only is None else only.flatten().nonzero()[:, 0]
    cell = made.repeat_interleave(synthesis.each)
    sample = torch.arange(synthesis.each).repeat(len(made))
    numbers = {k: v for k, v in asdict(synthesis).items() if k not in ("each", "batch_size")}
    files: list[Path | None] = [None] * len(cell)
    if cache is not None:
        made_from = Fingerprint(
            {
                "model": clip.fingerprint,
                # A model that was trained on in place is no longer what its file holds.
                "tensors": of_tensors(clip.model.state_dict()),
                "words": {"classes": classes, "domains": words, "templates": templates},
                "synthesis": numbers,
                "machine": machine(clip.device),
                "code": code_of("prototypes.pixels"),
            }
        )
        places = zip(cell.tolist(), sample.tolist(), strict=True)
        files = [_file(Path(cache), made_from, c, s) for c, s in places]
    images = _pictures(clip, targets, cell, sample, files, synthesis, quiet)
    hidden, embeddings = _measure(clip, images, synthesis.batch_size)
    features = Features(
        embeddings=embeddings,
        labels=cell // len(words),
        class_names=classes,
        hidden=hidden,
        domains=cell % len(words),
        domain_names=tuple(domains),
        provenance={
            **made_with(clip),
            "images": "synthesised from the model by ascent on pixels",
            "synthesis": {**numbers, "each": synthesis.each},
            "words": list(words),
            "templates": list(templates),
        },
    )
    named = (unit(features.embeddings.double()) @ targets.mT).argmax(-1)
    return Pictures(features, images, named == cell)


def _pictures(
    clip: Clip,
    targets: Float[Tensor, "cells dim"],
    cell: Int[Tensor, " n"],
    sample: Int[Tensor, " n"],
    files: Sequence[Path | None],
    synthesis: Synthesis,
    quiet: bool,
) -> UInt8[Tensor, "n 3 rows columns"]:
    """Read or make every picture; each batch is written before the next is begun.

    Batches are always the same ones, since what a picture is made with decides its last bits: a run
    that was stopped and goes on makes the very pictures that it would have made.
    """
    rows, columns = clip.image_size
    images = torch.empty(len(cell), 3, rows, columns, dtype=torch.uint8)
    missing = torch.zeros(len(cell), dtype=torch.bool)
    for i, file in enumerate(files):
        picture = None if file is None else _read(file, rows, columns)
        if picture is None:
            missing[i] = True
        else:
            images[i] = picture
    if not missing.any():
        return images
    tower = _float32(clip.model)
    keeps = True

    def made(batch: Tensor, stop: Event) -> Tensor:
        first = [start(rows, columns, synthesis.seed, int(s)) for s in sample[batch]]
        return _ascend(clip, tower, torch.stack(first), targets, cell[batch], synthesis, stop)

    batches = torch.arange(len(cell)).split(synthesis.batch_size)
    wanted = [batch for batch in batches if missing[batch].any()]
    with progress(
        total=int(missing.sum()), unit="image", desc="synthesising", hidden=quiet, leave=False
    ) as bar:
        with closing(_side_by_side(made, wanted, clip.device)) as results:
            for batch, found in zip(wanted, results, strict=True):
                new = missing[batch]
                images[batch[new]] = (found[new] * 255).round().byte()
                for i in batch[new].tolist():
                    if keeps and (file := files[i]) is not None:
                        keeps = _write(file, images[i])
                bar.update(int(new.sum()))
    return images


def _side_by_side(
    make: Callable[[Tensor, Event], Tensor], batches: Sequence[Tensor], device: torch.device
) -> Generator[Tensor, None, None]:
    """What is made of each batch, in order; on a CPU two at once, on half of its cores each.

    Steps are too short to be shared well by many cores; more at once would take their memory too.
    """
    threads, stop = torch.get_num_threads(), Event()
    if device.type != "cpu" or min(threads, len(batches)) < _AT_ONCE:
        yield from (make(batch, stop) for batch in batches)
        return
    torch.set_num_threads(threads // _AT_ONCE)
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield from pool.map(make, batches, repeat(stop))
    finally:
        stop.set()  # who interrupts does not wait for what is under way
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@torch.enable_grad()
def _ascend(
    clip: Clip,
    tower: nn.Module,
    pictures: Float[Tensor, "n 3 rows columns"],
    targets: Float[Tensor, "cells dim"],
    cell: Int[Tensor, " n"],
    synthesis: Synthesis,
    stop: Event,
) -> Float[Tensor, "n 3 rows columns"]:
    """Ascend `z·(t - mean t)/|z|` on each picture until it is told apart like its prompt."""
    pictures, cell = pictures.to(clip.device, copy=True), cell.to(clip.device)
    prompts = targets.float().to(clip.device)
    apart = unit(targets - targets.mean(0)).float().to(clip.device)
    sure = _margin(prompts @ prompts.mT, torch.arange(len(prompts), device=clip.device))
    first, second = torch.zeros_like(pictures), torch.zeros_like(pictures)
    live = torch.arange(len(pictures), device=clip.device)
    for step in range(1, synthesis.steps + 1):
        pixels = pictures[live].requires_grad_()
        embeddings = unit(encode(tower, clip.normalise(pixels)))
        gradient = _gradient(clip, (embeddings * apart[cell[live]]).sum(), pixels)
        margin = _margin(embeddings.detach() @ prompts.mT, cell[live])
        going = margin < sure[cell[live]]
        live, gradient = live[going], gradient[going]
        if not len(live) or stop.is_set():
            break
        first[live] = torch.lerp(gradient, first[live], _FIRST)
        second[live] = torch.lerp(gradient**2, second[live], _SECOND)
        rate = synthesis.step_size * (1 - _SECOND**step) ** 0.5 / (1 - _FIRST**step)
        moved = pictures[live] + rate * first[live] / (second[live].sqrt() + _TINY)
        pictures[live] = moved.clamp(0, 1)
    return pictures.cpu()


def _gradient(clip: Clip, score: Float[Tensor, ""], pixels: Tensor) -> Tensor:
    if not torch.isfinite(score):
        raise ValueError(f"the image tower of {clip.source.name} gives NaN or Inf")
    gradient = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score, pixels, allow_unused=True)
    if gradient is None or not gradient.any():
        raise ValueError(f"the image tower of {clip.source.name} passes no gradient to the pixels")
    if not torch.isfinite(gradient).all():
        raise ValueError(f"the image tower of {clip.source.name} passes NaN or Inf to the pixels")
    return gradient


def _margin(scores: Float[Tensor, "n cells"], own: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """By how much a row's own score exceeds the best other one."""
    rival = scores.scatter(-1, own[:, None], -torch.inf).amax(-1)
    return scores.gather(-1, own[:, None])[:, 0] - rival


def _measure(
    clip: Clip, images: UInt8[Tensor, "n 3 rows columns"], batch_size: int
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n dim"]]:
    batches = (clip.normalise(batch / 255) for batch in images.split(batch_size))
    rows = encode_all(clip, batches, "hidden")
    return rows["hidden"], rows["embedding"]


def _float32(model: nn.Module) -> nn.Module:
    """The model, or a copy of it in float32: half precision has no room for small gradients."""
    if all(p.dtype == torch.float32 for p in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def _file(cache: Path, made_from: Fingerprint, cell: int, sample: int) -> Path:
    key = hashlib.sha256(f"{made_from.digest} {cell} {sample}".encode()).hexdigest()
    return cache / f"{key}.png"


def _read(file: Path, rows: int, columns: int) -> UInt8[Tensor, "3 rows columns"] | None:
    """A cached picture; None where there is none, or a damaged one (PNG carries checksums)."""
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.mode != "RGB" or picture.size != (columns, rows):
                return None
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, zlib.error, struct.error):
        return None


def _write(file: Path, image: UInt8[Tensor, "3 rows columns"]) -> bool:
    """Keep a picture; where that fails, which is no error, say so."""
    try:
        with new_file(file, overwrite=True) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="PNG")
    except (OSError, ValueError) as error:
        warnings.warn(f"pictures are not kept: {error}", stacklevel=2)
        return False
    return True
