"""The figures of docs/results.md, one command a table: `python benchmarks/figures.py all`.

benchmarks/README.md says what each of them saw.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import _cells as cells
import _depth as depths
import _names as names
import _plane as planes
import _unnamed as unnamed_classes
import _wordings as wordings_tables
import click
import torch
from _tables import RESULTS, spread, target, write
from PIL import Image
from tqdm import tqdm

import nullspace_unlearn as nsu
from nullspace_unlearn import unlearn
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.evaluate.zeroshot import accuracy_grid, predict
from nullspace_unlearn.features import read_features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import Visual, from_images, near_synonyms
from nullspace_unlearn.report.plots import grid_heatmap

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
HOW = (
    "Means over the requests, in brackets the worst (of cells, first what nine of ten end below). "
    "Figures as in docs/figures.md: left 1 is all, "
    "0 nothing; over, told apart by getting the name less often; cost in points, each cell "
    "counting once; kept search, what searches by the names that stay find. neutral reads the last "
    "MLP, or what enters the value projection of a ResNet; gated the embedding; the peers prompts, "
    "with the library's defaults. Pixels: pictures made from the model alone."
)
NEAR = (
    "Of cell means, about their own mean over cells and about the real one: mean cosine; the rank "
    "of the right cell; accuracy on these images of a linear probe trained on the prototypes. In "
    "the joint space (z) and in the hidden one (h)."
)
SHOTS, DRAWS, _DRAWS_OF_REAL = 8, 3, 4
REAL = f"{SHOTS} images"
PACS_WORDS = {"art_painting": "painting"}

data_option: Callable[[Any], Any] = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=ROOT.parent / "shared",
    show_default="../shared beside the checkout",
    help="Folder that holds data/ and models/.",
)


class Absent(click.ClickException):
    """Data that must be got first."""

    exit_code = 2


@click.group()
def main() -> None:
    """Measure the erasers; write benchmarks/results/<name>.json and <name>.md."""
    logging.getLogger().setLevel(logging.ERROR)


@main.command()
def bundled() -> None:
    """The model and the pictures that come with the package."""
    bench = _bundled_bench(25)
    parts, result = _plane({"nsu-mini": bench})
    for forget, name in (
        (Forget(["car"], ["sketch"]), "car-in-sketch"),
        (Forget(domains=["sketch"]), "sketch"),
    ):
        _picture(bench, forget, IMAGES / f"{name}.png")
    several = {
        f"neutral, {REAL}, draw {d + 1}": _drawn(bench.clip, d) for d in range(_DRAWS_OF_REAL)
    }
    for kind in ("cell", "domain"):
        found = planes.draws(bench, kind, several)
        result["nsu-mini"][f"{kind}, draws"] = found
        every = {"all draws": [row for rows in found.values() for row in rows]}
        parts += [f"## nsu-mini, other draws of {REAL}: {planes.KINDS[kind].lower()}"]
        parts += [planes.table(found | every)]
    what = (
        f"nsu-mini, {len(bench.features)} {bench.features.provenance['images']}, on which nothing "
        "was trained or chosen, and which no prototype saw. Real images: one draw of "
        f"{SHOTS} other pictures a cell, and at the end more of them."
    )
    write("bundled", "Bundled model", [what, HOW, *parts], result)


@main.command()
@data_option
def imagenet(data: Path) -> None:
    """ImageNet under CLIP ViT-B/32, keep = the other names."""
    folder = data / "data" / "clip_vitb32"
    images = names.Images(read_features(_need(folder / "imagenet_4shot.npz")))
    rows = images.text
    found: dict[int, list[names.Row]] = {}
    proofs: dict[int, list[names.Proof]] = {}
    twins: dict[int, int] = {}
    for size in names.SIZES:
        tasks = [names.named(rows, gone) for gone in names.choose(len(rows), size)]
        twins[size] = sum(task.left_out > 0 for task in tasks)
        untouched = names.bound(images, tasks)
        edited = [names.measure(images, tasks, untouched, *one) for one in names.ERASERS.items()]
        found[size] = [untouched, *edited]
        bar = tqdm(tasks, unit="choice", desc=f"certificates, {size} classes")
        proofs[size] = [names.prove(images, task) for task in bar]
    targets = [
        target(f"{size} forgotten, hull, choices without a certificate",
               sum(not proof.holds for proof in some), 0)
        for size, some in proofs.items()
    ]  # fmt: skip
    for size, limit in ((1, 0.02), (10, 0.5), (100, 4.0)):
        row = next(row for row in found[size] if row.method == "level")
        targets += [
            target(f"{size} forgotten, level, left", row.left, 0.05),
            target(f"{size} forgotten, level, over", row.over, 0.05),
            target(f"{size} forgotten, level, cost in points", row.cost.mean, limit),
        ]
    many = ", ".join(f"{n} of {size}" for size, n in names.CHOICES.items())
    what = (
        f"OpenAI CLIP ViT-B/32, {len(images.features)} ImageNet images, {len(rows)} names, random "
        f"choices of classes with an odd number ({many}, seeds from 0): the numbers of `level` "
        "were picked on choices among the even ones. Left and over are of all choices together, "
        "since a class has four images. Every class that is not forgotten counts as kept. "
        "Kept search: what searches by the names that stay find. ccup is shown at numbers that "
        "were best on these very images."
    )
    twin = (
        "Three pairs of names have the same text prototype (maillot, crane, cardigan): where one "
        "is forgotten, its twin is left out of what must stay, and out of the certificate, yet its "
        "images count as kept. That is so in "
        f"{', '.join(f'{count} choices of {size}' for size, count in twins.items())}."
    )
    proof = (
        "The certificate of `hull` is computed from the operator rounded to float32, as a saved "
        "weight would hold it. Beside it what rounding to half precision brings back: the leak is "
        "the share of an erased direction that passes again (all of these the largest of all "
        "choices)."
    )
    parts = [what, twin, names.table(found), proof, names.proofs_table(proofs), "\n".join(targets)]
    result = {
        "methods": names.to_json(found),
        "proofs": {str(size): [asdict(p) for p in some] for size, some in proofs.items()},
        "choices_with_a_twin": twins,
    }
    write("imagenet", "ImageNet, the class list given", parts, result)


@main.command()
@data_option
def vocabulary(data: Path) -> None:
    """The same with a vocabulary that the user did not give."""
    folder = data / "data" / "clip_vitb32"
    images = names.Images(read_features(_need(folder / "imagenet_4shot.npz")))
    further = names.read_vocabulary(_need(folder / "vocabulary_text.npz"))
    rows = images.text
    found: dict[int, list[names.Row]] = {}
    left_out: dict[int, float] = {}
    for size, few in ((1, 20), (10, 10), (100, 3)):
        chosen = names.choose(len(rows), size)[:few]
        tasks = [_unnamed(rows, further, gone) for gone in chosen]
        left_out[size] = spread([task.left_out for task in tasks]).mean
        untouched = names.bound(images, tasks)
        edited = [
            names.measure(images, tasks, untouched, name, names.ERASERS[name])
            for name in ("hull", "level", "nullspace")
        ]
        found[size] = [untouched, *edited]
    targets = []
    for name in ("hull", "level"):
        ten = next(row for row in found[10] if row.method == name)
        targets += [
            target(f"10 forgotten, {name}, left", ten.left, 0.05),
            target(f"10 forgotten, {name}, cost in points", ten.cost.mean, 0.5),
        ]
    what = (
        "As in imagenet.md (its first 20, 10 and 3 choices), but what must stay is "
        f"{len(further)} names of LVIS and Open Images "
        "and the other ImageNet names, less near-synonyms of what is forgotten by the library's "
        f"own rule (on average {', '.join(f'{n:.1f} names for {s}' for s, n in left_out.items())} "
        "forgotten). Images still choose among the 1,000 ImageNet names, and every class that was "
        "not asked to be forgotten counts as kept, near-synonyms too."
    )
    parts = [what, names.table(found), "\n".join(targets)]
    result = {"methods": names.to_json(found), "near_synonyms": left_out}
    write("vocabulary", "ImageNet, the class list not given", parts, result)


@main.command()
@data_option
def pacs(data: Path) -> None:
    """Photographs and drawings: PACS under two small CLIPs."""
    root = _need(data / "data" / "pacs")
    folders = [_need(data / "models" / name) for name in ("clip-vit-pacs", "clip-rn-pacs")]
    parts, result = _plane({one.name: _pacs_bench(root, one) for one in folders})
    what = (
        "Two small CLIPs trained on 70% of PACS, measured on the other 30% (their test.txt) less "
        f"one draw of {SHOTS} images a cell: these are the few real images, as a user would have "
        "them, and neither model nor prototypes saw those reported on. Beside them as many "
        "training images, of which the models are surer than of any others. Numbers were chosen on "
        "training images of these models and on bundled pictures, never on these."
    )
    write("pacs", "PACS", [what, HOW, *parts], result)


@main.command()
@data_option
def thumbnails(data: Path) -> None:
    """Photos and thumbnails under a real CLIP: a domain that its embedding alone can tell."""
    grid = read_features(_need(data / "data" / "clip_vitb32" / "thumbnails_vs_photos_vitb32.npz"))
    found = planes.thumbnails(grid, 4, DRAWS)
    what = (
        f"OpenAI CLIP ViT-B/32, photos and 32-pixel thumbnails of {len(grid.class_names)} classes. "
        f"From the embedding alone, which is all there is; {DRAWS} draws of 4 images a cell, the "
        "other images reported on."
    )
    write("thumbnails", "Photos and thumbnails", [what, HOW, planes.table(found)], found)


@main.command()
@data_option
def wordings(data: Path) -> None:
    """A class everywhere, asked for by each of the 80 standard templates alone."""
    root = _need(data / "data" / "pacs")
    folders = [_need(data / "models" / name) for name in ("clip-vit-pacs", "clip-rn-pacs")]
    benches = {"nsu-mini": _bundled_bench(25)}
    benches |= {folder.name: _pacs_bench(root, folder) for folder in folders}
    found = {name: wordings_tables.measure(bench) for name, bench in benches.items()}
    targets = [
        target(
            f"{name}, {method}, worst template of any class",
            max(max(row["named"]) for row in rows[method]),
            0.05 if name == "nsu-mini" else 0.02,
        )
        for name, rows in found.items()
        for method in ("hull", "avert, --side text")
    ]
    what = (
        "Every class in turn, forgotten everywhere; images as in the tables bundled and pacs. How "
        "often its own images get its name from the whole list, where each prompt is made by one "
        "of CLIP's 80 templates alone: of the worst template and class, the mean over classes of "
        "their worst, the mean of all. Beside it left, over, cost and what searches by the names "
        "that stay find, asked in the model's own templates. A row is made of every other template "
        "of the 80 and asked by the other ones. The numbers that weigh wordings against kept names "
        "were chosen on other pictures and on training images."
    )
    parts = [part for name, rows in found.items()
             for part in (f"## {name}", wordings_tables.table(rows))]  # fmt: skip
    write("wordings", "In other words", [what, *parts, "\n".join(targets)], found)


@main.command()
@data_option
@click.option("--model", "only", multiple=True, help="Only this one; the others' rows stay.")
def unnamed(data: Path, only: tuple[str, ...]) -> None:
    """Whole domains, by pictures of some of the classes: what is left of the other ones."""
    root = data / "data" / "pacs"
    made: dict[str, tuple[Callable[[], cells.Bench], int, int]] = {
        "nsu-mini": (lambda: _bundled_bench(25), 4, 4),
        "clip-vit-pacs": (lambda: _pacs_bench(root, data / "models" / "clip-vit-pacs"), 2, 3),
        "clip-rn-pacs": (lambda: _pacs_bench(root, data / "models" / "clip-rn-pacs"), 2, 2),
    }
    held = RESULTS / "unnamed.json"
    found = json.loads(held.read_text(encoding="utf-8")) if only and held.exists() else {}
    for name in only or made:
        if name != "nsu-mini":
            _need(root)
        bench, hidden, draws = made[name]
        found[name] = unnamed_classes.measure(bench(), hidden, draws)
    what = (
        "Each domain in turn, forgotten with pictures of some of the classes: the others are held "
        "out (4 of 12, 2 of 7), drawn at random. Beside them pictures of further names (--keep), "
        "drawn from ImageNet's, in every domain. Named: accuracy in the list of all classes; left, "
        "over and cost of all classes together. Images as in the tables bundled and pacs."
    )
    parts = []
    for name, rows in found.items():
        reached = [row["taken for their own"] for row in rows if row["further"]]
        note = (
            f"{len({row['draw'] for row in rows})} draws. Of the pictures with further names among "
            f"them the model takes {sum(reached) / len(reached):.0%} for their own cells."
        )
        parts += [f"## {name}", unnamed_classes.table(rows), note]
    write("unnamed", "Classes that were not named", [what, *parts], found)


@main.command()
@data_option
def depth(data: Path) -> None:
    """Two-sided erasure: what is kept against what a probe still finds."""
    features = read_features(_need(data / "data" / "clip_vitb32" / "imagenet_4shot.npz"))
    found = depths.imagenet_depth(features)
    depths.draw(found[10], IMAGES / "two-sided.png")
    few = depths.bundled_depth(nsu.load("nsu-mini"))
    what = (
        "OpenAI CLIP ViT-B/32, ImageNet: forgotten classes are drawn among those with an odd index "
        "(numbers were chosen on even ones). Two of a class's four images are the edit's, one the "
        "probe's only shot, one is tested on, over four splits, so that no shot or test image was "
        "seen by the edit. Kept: zero-shot accuracy on other classes' test images. Nearest mean is "
        "the better of plain and centred cosine over 1,000 classes (chance .001); whitened uses "
        "the shots' covariance. Certificates are computed for the first five choices."
    )
    bundled = (
        "Every class in turn; 8 pictures a class for the edit, 8 or 40 others for the probe, 80 "
        "others tested on; chance .083. Logistic regression shows the better of C = 1 and 100."
    )
    parts = [what]
    for size, rows in found.items():
        parts += [f"## ImageNet, {size} forgotten", depths.table(rows, depths.ONE_SHOT)]
    parts += ["![trade-off](../../docs/images/two-sided.png)"]
    parts += ["## nsu-mini", bundled, depths.table(few, depths.MANY_SHOTS)]
    result = {str(size): depths.to_json(rows) for size, rows in found.items()}
    write("depth", "Two-sided erasure", parts, {**result, "bundled": depths.to_json(few)})


@main.command("all")
@data_option
@click.pass_context
def everything(context: click.Context, data: Path) -> None:
    """Every table."""
    context.invoke(bundled)
    for command in (imagenet, vocabulary, pacs, wordings, thumbnails, depth):
        context.invoke(command, data=data)
    context.invoke(unnamed, data=data, only=())


def _bundled_bench(each: int) -> cells.Bench:
    """The bundled model, pictures to report on, and other pictures as a user's few."""
    clip = nsu.load("nsu-mini")
    assert clip.words is not None
    fresh = embed(clip, bundled_to_report(each), hidden=True)
    drawn = list(_rendered(clip, range(10_000_000, 10_000_000 + each)))
    inner = cells.read_inner(clip, drawn)
    return cells.Bench(clip, fresh, inner, clip.words.domains, {REAL: _drawn(clip, 0)})


def _pacs_bench(root: Path, folder: Path) -> cells.Bench:
    """A model of PACS, test images to report on, a few others, and a few training images."""
    clip = nsu.load(folder)
    test, train = (
        read_folder(root, PACS_WORDS, listing=folder / part) for part in ("test.txt", "train.txt")
    )
    few, _, rest = test.split(SHOTS)
    inner = cells.read_inner(clip, (b.images for b in rest.batches(clip.preprocess)))
    real = {
        name: from_images(clip, images, shots=SHOTS, space=cells.deepest(clip))
        for name, images in ((REAL, few), (f"{SHOTS} training images", train))
    }
    return cells.Bench(clip, embed(clip, rest, hidden=True), inner, test.words, real)


def _need(path: Path) -> Path:
    if not path.exists():
        raise Absent(f"{path} is not there: put it there, or name another folder with --data")
    return path


def _plane(benches: Mapping[str, cells.Bench]) -> tuple[list[str], dict[str, Any]]:
    """Sections and JSON of every kind of request, and how near the prototypes come."""
    parts: list[str] = []
    result: dict[str, Any] = {}
    for name, bench in benches.items():
        result[name] = {}
        for kind, title in planes.KINDS.items():
            found = planes.measure(bench, kind)
            result[name][kind] = found
            parts += [f"## {name}: {title.lower()}", planes.table(found)]
            if ours := found.get("neutral, pixels"):
                parts.append(f"Paid most for neutral from pixels (points): {planes.paid(ours)}.")
        near = cells.near(bench)
        result[name]["nearness"] = {key: asdict(one) for key, one in near.items()}
        parts += [f"## {name}: how near the prototypes come to these images", NEAR]
        parts.append(cells.near_table(near))
    return parts, result


def _picture(bench: cells.Bench, forget: Forget, path: Path) -> None:
    """The grids before and after the default edit, from pictures that the model makes."""
    f = bench.features
    edit = unlearn.erase(bench.clip, bench.plan(forget, "neutral"), visual=bench.made["pixels"])
    mask = forget.mask(f.class_names, f.domain_names)
    grids = (
        accuracy_grid(predict(rows, bench.classes), f.labels, f.domains, *mask.shape)
        for rows in (bench.embeddings(), bench.embeddings(edit))
    )
    grid_heatmap(*grids, mask, f.class_names, f.domain_names, path, overwrite=True)
    Image.open(path).quantize(48).save(path, optimize=True)  # a third of the size


def _rendered(clip: nsu.Clip, seeds: Sequence[int]) -> Iterator[torch.Tensor]:
    """Bundled pictures as the model takes them, a cell at a time, in the order of cells."""
    for class_, domain in product(mini.CLASSES, mini.DOMAINS):
        drawn = [clip.preprocess(mini.render(class_, domain, seed)) for seed in seeds]
        yield torch.stack(drawn)


def _drawn(clip: nsu.Clip, draw: int) -> Visual:
    """Bundled pictures as a user's few images, on seeds far from those reported on."""
    number = 1_000_000 + draw
    features = embed(clip, bundled_to_report(SHOTS, number), hidden=True)
    first = 10_000_000 + number * SHOTS
    seen = cells.read_inner(clip, _rendered(clip, range(first, first + SHOTS)))
    assert seen is not None
    return Visual(features, "images", seen.rows)


def _unnamed(rows: torch.Tensor, further: torch.Tensor, gone: torch.Tensor) -> names.Task:
    """The user gave no class list: keep every name less near-synonyms of what is forgotten."""
    candidates = torch.cat([rows[~gone], further])
    near = near_synonyms(rows[gone], candidates)
    return names.Task(gone, rows[gone], candidates[~near], int(near.sum()))


if __name__ == "__main__":
    main()
