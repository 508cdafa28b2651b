"""Trained methods beside the closed forms: `python benchmarks/trained.py run WORLD`.

Every run leaves one JSON in the work folder, so that a command that was cut short goes on where it
stopped; `table` reads them and writes benchmarks/results/trained-<world>.md and .json.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _peers as peers
import _trained_tables as tables
import _worlds as worlds
import click
import torch
from safetensors.torch import load_file
from tqdm import tqdm

import nullspace_unlearn as nsu
from nullspace_unlearn.files import new_file
from nullspace_unlearn.forget import Forget

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        world: One of `peers.WORLDS`.
        label: The row of the table.
        kind: The kind of request.
        number: Which of the kind's requests.
        seed: The draw of images.
        numbers: In place of the row's own, while they are being chosen; else None.
    """

    world: str
    label: str
    kind: str
    number: int
    seed: int
    numbers: tuple[tuple[str, str], ...] | None = None

    def file(self, work: Path) -> Path:
        """Where its result goes."""
        row = re.sub(r"[^\w.-]+", "_", self.label)
        chosen = "".join(f"-{key}={value}" for key, value in self.numbers or ())
        part = self.world if self.numbers is None else f"{self.world}-chosen"
        return work / part / f"{row}{chosen}" / f"{self.kind}-{self.number}-{self.seed}.json"


_WORLDS: dict[tuple[str, bool], worlds.World] = {}


def world_of(name: str, chosen: bool) -> worlds.World:
    """A world, made once a process."""
    if (name, chosen) not in _WORLDS:
        each = 15 if chosen else worlds.EACH
        if name == "bundled":
            _WORLDS[name, chosen] = worlds.bundled(each, chosen)
        else:
            shared = Path(os.environ["NSU_SHARED"])
            _WORLDS[name, chosen] = worlds.pacs(peers.WORLDS[name], shared, each, chosen)
    return _WORLDS[name, chosen]


def run_job(given: tuple[Job, Path]) -> None:
    """Run one job and write its result."""
    job, work = given
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    world = world_of(job.world, job.numbers is not None)
    path = job.file(work)
    forget = world.requests(job.kind)[job.number]
    if job.label == "untouched":
        result: dict[str, Any] = world.measure(forget, world.clip)
    elif job.label in peers.CLOSED:
        result = peers.run_closed(world, job.label, forget, job.seed)
    else:
        peer = peers.PEERS[job.world][job.label]
        if job.numbers is not None:
            peer = peers.Peer(peer.method, {**peer.numbers, **dict(job.numbers)})
        result = peers.run_trained(
            world, peer, forget, job.seed, keep=path.with_suffix(".safetensors")
        )
    with new_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps({**asdict(job), **result}))


def run_all(jobs: Sequence[Job], work: Path, workers: int) -> None:
    """Run what has not been run."""
    left = [(job, work) for job in jobs if not job.file(work).exists()]
    if not left:
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        list(tqdm(pool.imap_unordered(run_job, left), "runs", len(left)))


world_argument: Callable[[Any], Any] = click.argument(
    "world", type=click.Choice(list(peers.WORLDS))
)
shared_options: list[Callable[[Any], Any]] = [
    click.option("--work", type=click.Path(path_type=Path), default=Path("trained-runs"),
                 show_default=True, help="Where runs leave their results."),
    click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared",
                 show_default="../shared beside the checkout"),
    click.option("--workers", default=2, show_default=True, help="Processes, one thread each."),
    click.option("--only", multiple=True, metavar="LABEL", help="Only these rows."),
]  # fmt: skip


def shared(command: Any) -> Any:
    """The options that every command takes."""
    for option in reversed(shared_options):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Measure trained methods."""


@main.command()
@world_argument
@shared
@click.option("--kind", "kinds", multiple=True, type=click.Choice(peers.KINDS))
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Draws of images; more of them cost as much time again.",
)
def run(
    world: str,
    work: Path,
    data: Path,
    workers: int,
    only: tuple[str, ...],
    kinds: tuple[str, ...],
    draws: int,
) -> None:
    """Every row: each whole domain, and two cells."""
    os.environ["NSU_SHARED"] = str(data)
    jobs = []
    for kind in kinds or peers.KINDS:
        labels = ["untouched", *peers.CLOSED]
        labels += list(peers.PEERS[world])
        for label in labels:
            if only and label not in only:
                continue
            for number in range(4 if kind == "domain" else 2):
                seeds = range(draws) if peers.sees_draw(world, label) else [0]
                jobs += [Job(world, label, kind, number, seed) for seed in seeds]
    run_all(jobs, work, workers)


@main.command()
@world_argument
@shared
@click.argument("label")
@click.argument("grid", nargs=-1, required=True)
@click.option("--kind", default="domain", type=click.Choice(peers.KINDS), show_default=True)
@click.option("--number", "requests", multiple=True, type=int, default=(0, 2), show_default=True)
def tune(
    world: str,
    work: Path,
    data: Path,
    workers: int,
    only: tuple[str, ...],
    label: str,
    grid: tuple[str, ...],
    kind: str,
    requests: tuple[int, ...],
) -> None:
    """Try numbers of a row on images that no table reports: LABEL lr=1e-5,epochs=10 lr=1e-4 ..."""
    os.environ["NSU_SHARED"] = str(data)
    tried = [tuple(sorted(tuple(pair.split("=")) for pair in one.split(","))) for one in grid]
    jobs = [
        Job(world, label, kind, number, worlds.CHOSEN_ON, numbers)
        for numbers in tried
        for number in requests
    ]
    run_all(jobs, work, workers)
    for numbers in tried:
        found = [json.loads(job.file(work).read_text()) for job in jobs if job.numbers == numbers]
        click.echo(tables.one_line(numbers, found))


@main.command()
@world_argument
@shared
def again(world: str, work: Path, data: Path, workers: int, only: tuple[str, ...]) -> None:
    """Measure anew what runs have kept: for figures that were thought of since."""
    os.environ["NSU_SHARED"] = str(data)
    for path in tqdm(sorted((work / world).glob("*/*.json")), "measured"):
        run = json.loads(path.read_text())
        kept = path.with_suffix(".safetensors")
        if kept.exists() and (not only or run["label"] in only):
            rows = load_file(kept)
            place = world_of(world, False)
            forget = place.requests(run["kind"])[run["number"]]
            run |= place.figures(forget, rows["embeddings"], rows["text"]) | {
                "seconds": run["seconds"]
            }
            with new_file(path, overwrite=True) as temporary:
                temporary.write_text(json.dumps(run))


@main.command()
@click.argument("models", type=click.Path(path_type=Path, exists=True))
@shared
def retrained(models: Path, work: Path, data: Path, workers: int, only: tuple[str, ...]) -> None:
    """Models that train_mini.py made without some cells: MODELS/sketch and car-sketch."""
    world = world_of("bundled", False)
    for name, kind in (("sketch", "domain"), ("car-sketch", "cell")):
        if not (models / name).exists():
            continue
        asked = Forget(name.split("-")[:1], name.split("-")[1:]) if kind != "domain" else None
        asked = asked or Forget(domains=[name])
        number = world.requests(kind).index(asked)
        job = Job("bundled", "retrained", kind, number, 0)
        clip = nsu.load(models / name)
        result = {**asdict(job), **world.measure(asked, clip)}
        with new_file(job.file(work), overwrite=True) as temporary:
            temporary.write_text(json.dumps(result))


@main.command()
@world_argument
@shared
def table(world: str, work: Path, data: Path, workers: int, only: tuple[str, ...]) -> None:
    """Write the tables from what has been run."""
    tables.write_all(world, work, peers.PEERS[world])


if __name__ == "__main__":
    main()
