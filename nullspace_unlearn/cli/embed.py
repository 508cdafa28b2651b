"""`nsu embed`: features of images, computed once and kept in a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import DataOptions, data_options, say_skipped

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.features import Features
    from nullspace_unlearn.processes import Processes


@click.command()
@options.model_options
@data_options
@click.option("--output", required=True, metavar="FILE", help="Feature file to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file, or another job's parts.")
@click.option(
    "--hidden/--no-hidden",
    default=None,
    help="Keep what enters the image tower's final projection too; absent: where it has one.",
)
@options.device_options
@options.output_options
def embed(
    model: str,
    pretrained: str | None,
    data: DataOptions,
    output: str,
    overwrite: bool,
    hidden: bool | None,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute features of images once, for evaluate and erase --data FILE.

    \b
    nsu embed --model ViT-B-32 --pretrained openai --data images/ --output images.safetensors
    torchrun --no-python --nproc-per-node 4 nsu embed ...        the same file, on 4 processes

    What is done is kept beside the file, in FILE.parts: the same command goes on from there.
    """  # noqa: D301
    from nullspace_unlearn.features.file import embed_to_file
    from nullspace_unlearn.processes import launched

    silent = quiet or as_json
    started = time.perf_counter()
    with launched() as processes:

        def prepare() -> tuple[Source, Clip]:
            found = _images(data, model, output, overwrite, processes, quiet)
            where = _device(device, processes)
            return found, options.load_model(model, pretrained, where, precision)

        found, clip = processes.step(prepare)
        embed_to_file(
            clip,
            found,
            output,
            hidden=hidden,
            batch_size=data.batch_size,
            workers=data.num_workers,
            overwrite=overwrite,
            processes=processes,
            quiet=silent,
        )
    if processes.leads:
        _report(output, time.perf_counter() - started, as_json, quiet)


def _images(
    data: DataOptions, model: str, output: str, overwrite: bool, processes: Processes, quiet: bool
) -> Source:
    """The images, looked at before any work is spent."""
    if processes.leads:
        from nullspace_unlearn.features.features import check_replaceable

        options.claim(overwrite, output)
        check_replaceable(Path(output), overwrite)
    options.keep_contents(options.cache_folder(None, False))
    found = data.find({}, model, quiet or not processes.leads)
    if found is None:
        raise ValueError("give --data: a folder of images, shards, or nsu-mini")
    if found.features is not None:
        raise ValueError(f"--data {data.data!r} holds features already: give images")
    return found


def _device(device: str, processes: Processes) -> str:
    """A GPU of its own for each process of a machine."""
    import torch

    shared = processes.count > 1 and device in ("auto", "cuda") and torch.cuda.is_available()
    return f"cuda:{processes.local_rank}" if shared else device


def _report(output: str, seconds: float, as_json: bool, quiet: bool) -> None:
    from nullspace_unlearn.features import Features

    features = Features.load(output)
    say_skipped(features)
    if as_json:
        options.print_json(_summary(features, output, seconds))
    elif not quiet:
        kept = f" and hidden {list(features.hidden.shape)}" if features.hidden is not None else ""
        click.echo(
            f"Wrote {output}: {len(features)} images of {len(features.class_names)} classes in "
            f"{len(features.domain_names)} domains, embeddings {list(features.embeddings.shape)}"
            f"{kept}, in {seconds:.1f} s"
        )


def _summary(features: Features, output: str, seconds: float) -> dict[str, Any]:
    return {
        "output": output,
        "images": len(features),
        "classes": list(features.class_names),
        "domains": list(features.domain_names),
        "dim": features.embeddings.shape[1],
        "width": None if features.hidden is None else features.hidden.shape[1],
        "provenance": dict(features.provenance),
        "seconds": seconds,
    }
