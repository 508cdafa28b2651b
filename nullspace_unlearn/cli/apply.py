"""`nsu apply`: patches into a model's weights, or onto embeddings that are stored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.options import ModelOptions

if TYPE_CHECKING:
    from nullspace_unlearn.patch import Ordered, Patch
    from nullspace_unlearn.stores.change import Lengths
    from nullspace_unlearn.stores.job import Bad


@dataclass(frozen=True)
class StoreOptions:
    """The options of `store_options`, as given."""

    embeddings: str | None
    column: str | None
    nan: Bad
    lengths: Lengths


store_options = options.gathered(
    "store",
    StoreOptions,
    click.option(
        "--embeddings",
        metavar="STORE",
        help="Stored embeddings in place of a model: .npy, .safetensors, .parquet, or a folder.",
    ),
    click.option("--column", metavar="NAME", help="Which column or tensor holds the vectors."),
    click.option(
        "--nan",
        type=click.Choice(["refuse", "keep"]),
        default="refuse",
        show_default=True,
        help="Rows with NaN or Inf: refuse the store, or keep these as they are.",
    ),
    click.option(
        "--lengths",
        type=click.Choice(["unit", "linear"]),
        default="unit",
        show_default=True,
        help="unit: a row of length 1 stays one; linear: every row gets what the edit makes of it.",
    ),
)


@click.command()
@click.argument("patch", nargs=-1, required=True)
@click.option("--model", help="The model that the patches are for, as for erase.")
@click.option("--pretrained", help="Tag or weights file, for an open_clip name.")
@store_options
@click.option("--output", required=True, metavar="PATH", help="Folder or file to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--undo", metavar="FILE", help="With --model: also write what brings it back.")
@options.device_options
@options.output_options
@options.which_model
def apply(
    patch: tuple[str, ...],
    which: ModelOptions,
    store: StoreOptions,
    output: str,
    overwrite: bool,
    undo: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Apply PATCH files of nsu erase --patch, one after another, in one go.

    \b
    nsu apply car.patch --model ViT-B-32 --pretrained openai --output out
    nsu apply car.patch dog.patch --model nsu-mini --output out
    nsu apply car.patch --embeddings store.npy --output edited.npy
    torchrun --no-python --nproc-per-node 4 nsu apply ...        the same store, on 4 processes

    What is done of a store is kept beside it, in OUTPUT.parts: the same command goes on from there.
    """  # noqa: D301
    from nullspace_unlearn.patch import Patch

    patches = [Patch.load(file) for file in patch]
    if (which.model is None) == (store.embeddings is None):
        raise ValueError("give --model or --embeddings: what the patches are to be applied to")
    if store.embeddings is not None:
        if undo is not None:
            raise ValueError("--undo is for --model: of a store, keep the store itself")
        said, lines = _to_store(patches, store, output, overwrite, quiet or as_json)
    else:
        said, lines = _to_model(patches, patch, which, output, overwrite, undo)
    if as_json and said:
        options.print_json(said)
    elif not quiet and lines:
        click.echo("\n".join(lines))


def _to_model(
    patches: list[Patch],
    names: tuple[str, ...],
    which: ModelOptions,
    output: str,
    overwrite: bool,
    undo: str | None,
) -> tuple[dict[str, Any], list[str]]:
    from nullspace_unlearn.patching import fold_patches

    options.claim(overwrite, output, undo)
    started = time.perf_counter()
    edited, pairs = fold_patches(which.load(), patches, [repr(name) for name in names])
    told = _told(patches, pairs)
    # Figures of one patch hold for what it makes; of several nobody has measured the whole.
    report = patches[0].figures if len(patches) == 1 else told
    edited.save(Path(output), overwrite, undo=undo, report=report)
    told |= {"parameter": [change.key for change in edited.changes]}
    seconds = time.perf_counter() - started
    lines = [f"Applied {one.title} (rank {one.read.shape[-1]})" for one in patches]
    lines += [*_order_lines(patches, pairs), f"Wrote {output} (load it as local-dir:{output})"]
    return {**told, "seconds": seconds, "output": output}, lines


def _to_store(
    patches: list[Patch], store: StoreOptions, output: str, overwrite: bool, quiet: bool
) -> tuple[dict[str, Any], list[str]]:
    """What is said in the end; nothing in processes that do not lead."""
    from nullspace_unlearn.patch import ordered
    from nullspace_unlearn.processes import launched
    from nullspace_unlearn.stores.change import change
    from nullspace_unlearn.stores.job import edit_store

    made = change(patches, store.lengths)
    started = time.perf_counter()
    with launched() as processes:
        if processes.leads:
            options.claim(overwrite, output)
        seen = edit_store(
            str(store.embeddings), output, made, column=store.column, bad=store.nan,
            overwrite=overwrite, processes=processes, quiet=quiet,
        )  # fmt: skip
        if not processes.leads:
            return {}, []
    seconds = time.perf_counter() - started
    pairs = ordered(patches)
    counts = {"rows": seen.rows, "normalised": seen.normalised, "nan_rows": seen.bad}
    lines = [f"Applied {one.title} (rank {one.read.shape[-1]})" for one in patches]
    lines += _order_lines(patches, pairs)
    if seen.bad:
        lines.append(f"Kept as they are: {seen.bad_in_words}")
    lines.append(
        f"Wrote {output}: {seen.rows:,} embeddings of "
        f"{'images' if patches[0].side == 'visual' else 'texts'}, {seen.normalised:,} of them of "
        f"length 1 as before, in {seconds:.1f} s"
    )
    return {**_told(patches, pairs), **counts, "seconds": seconds, "output": output}, lines


def _order_lines(patches: list[Patch], pairs: tuple[Ordered, ...]) -> list[str]:
    """What is said of patches whose order counts."""
    return [
        f"The order counts: {patches[one.first].title} before {patches[one.second].title}; the "
        f"other way round {one.share:.1%} of the smaller edit would come out differently"
        for one in pairs
        if one.matters
    ]


def _told(patches: list[Patch], pairs: tuple[Ordered, ...]) -> dict[str, Any]:
    return {
        "patches": [
            {"request": one.provenance.get("request"), "rank": one.read.shape[-1]}
            for one in patches
        ],
        "order": [
            {"patches": [one.first, one.second], "share": one.share, "matters": one.matters}
            for one in pairs
        ],
    }
