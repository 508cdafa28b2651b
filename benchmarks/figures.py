"""The figures of docs/results.md, one command a table: `python benchmarks/figures.py all`.

benchmarks/README.md says what each of them saw.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import _cells as cells
import _names as names
import click
import torch
from _tables import spread, target, write
from PIL import Image
from tqdm import tqdm

import nullspace_unlearn as nsu
from nullspace_unlearn import erasers
from nullspace_unlearn.data.folders import find_images
from nullspace_unlearn.evaluate.pictures import embed_pictures
from nullspace_unlearn.features import embed, read_features
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import near_synonyms
from nullspace_unlearn.report.plots import grid_heatmap
from nullspace_unlearn.words import Words

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
KINDS = {
    "cell": "One class in one domain, every cell in turn",
    "global": "One class everywhere, every class in turn",
    "domain": "One whole domain, every domain in turn",
}
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
    clip = nsu.load("nsu-mini")
    # The numbers of ccup are searched for on other pictures than those reported.
    fresh, other = (embed_pictures(clip, each=50, seed=seed) for seed in (0, 1))
    assert clip.words is not None
    bench, tune = (cells.Bench(clip, features, clip.words.domains) for features in (fresh, other))
    parts, result, found = _kinds(bench, tune)
    h4 = {row.method: row for row in found["cell"]}
    gone = spread([one.forgotten for one in h4["gated"].figures]).mean
    targets = [
        target("One cell, gated, forgotten accuracy", gone, 0.05),
        target("One cell, gated, share of the ideal H4", h4["gated"].h4 / h4["ideal"].h4, 0.93,
               most=False),
    ]  # fmt: skip
    forget = Forget(["car"], ["sketch"])
    edit = nsu.erase(clip, forget)
    IMAGES.mkdir(parents=True, exist_ok=True)
    grid_heatmap(
        bench.grid(),
        bench.grid(edit),
        forget.mask(fresh.class_names, fresh.domain_names),
        fresh.class_names,
        fresh.domain_names,
        picture := IMAGES / "car-in-sketch.png",
        overwrite=True,
    )
    Image.open(picture).quantize(48).save(picture, optimize=True)  # a third of the size
    what = (
        f"nsu-mini, {len(fresh)} {fresh.provenance['images']}, on which nothing was trained or "
        f"chosen; text prompts only. ccup's best λ and μ were picked on {len(tune.features)} other "
        "pictures."
    )
    write("bundled", "Bundled model", [what, *parts, "\n".join(targets)], result)


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
        plain = [names.measure(images, tasks, *one) for one in names.ERASERS.items()]
        peer = names.best([names.measure(images, tasks, *one) for one in names.CCUP.items()])
        found[size] = [*names.bounds(images, tasks), *plain, peer]
        bar = tqdm(tasks, unit="choice", desc=f"certificates, {size} classes")
        proofs[size] = [names.prove(images, task) for task in bar]
    targets = []
    for size, limit in zip(names.SIZES, (0.1, 0.2, 2.5), strict=True):
        row = next(row for row in found[size] if row.method == "hull")
        worst = max(one.forgotten for one in row.outcomes)
        broken = sum(not proof.holds for proof in proofs[size])
        loss = names.losses(found[size], row).mean
        targets += [
            target(f"{size} forgotten, hull, forgotten accuracy of the worst choice", worst, 0),
            target(f"{size} forgotten, hull, choices without a certificate", broken, 0),
            target(f"{size} forgotten, hull, points below the ideal", loss, limit),
        ]
    curve = _curve(images, rows)
    what = (
        f"OpenAI CLIP ViT-B/32, {len(images.features)} ImageNet images, {len(rows)} names, "
        f"{names.CHOICES} random choices of what to forget (seeds 0 to {names.CHOICES - 1}). Every "
        "class that is not forgotten counts as kept. ccup is shown at the best of "
        f"{len(names.CCUP)} pairs of λ and μ, picked on these very images: most accuracy on kept "
        "classes of those that leave at most .01 of the forgotten ones (else the best harmonic "
        "mean). No other row has a number picked on any image."
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
        "strength": curve,
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
    for size in names.SIZES:
        tasks = [_unnamed(rows, further, gone) for gone in names.choose(len(rows), size)]
        left_out[size] = spread([task.left_out for task in tasks]).mean
        plain = [
            names.measure(images, tasks, name, names.ERASERS[name])
            for name in ("hull", "nullspace", "leace")
        ]
        found[size] = [*names.bounds(images, tasks), *plain]
    ten = next(row for row in found[10] if row.method == "hull")
    targets = [
        target("10 forgotten, hull, forgotten accuracy", ten.mean("forgotten"), 0.01),
        target("10 forgotten, hull, points below the ideal",
               names.losses(found[10], ten).mean, 0.5),
    ]  # fmt: skip
    what = (
        f"As in imagenet.md, but what must stay is {len(further)} names of LVIS and Open Images "
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
    folders = [_need(data / "models" / name) for name in ("clip-rn-pacs", "clip-vit-pacs")]
    parts = [
        "Two small CLIPs trained on 70% of PACS, measured on the other 30% (their test.txt); text "
        "prompts only. The defaults of `gated` were chosen on training images of these models and "
        "on bundled pictures, never on these. ccup's best λ and μ were picked on these very "
        "images, which favours it. The figures count every cell once, however many images it has."
    ]
    result: dict[str, Any] = {}
    targets: list[str] = []
    for folder in folders:
        clip = nsu.load(folder)
        found = find_images(root, PACS_WORDS, folder / "test.txt")
        words = dict(zip(found.domains, found.domain_words, strict=True))
        bench = cells.Bench(clip, embed(clip, found), words)
        some, result[folder.name], rows = _kinds(bench, bench)
        parts += [f"## {folder.name}", *some]
        h4 = {row.method: row.h4 for row in rows["cell"]}
        if folder.name == "clip-rn-pacs":
            targets.append(
                target(f"{folder.name}, one cell, gated, share of the ideal H4",
                       h4["gated"] / h4["ideal"], 0.89, most=False)
            )  # fmt: skip
            targets.append(f"- nullspace reaches {h4['nullspace'] / h4['ideal']:.1%} of it.")
        trained = replace(
            clip,
            words=Words(
                class_templates=("a picture of a {class}",),
                cell_templates=("a {domain} of a {class}",),
            ),
        )
        bench = cells.Bench(trained, bench.features, words)
        asked = cells.requests(found.classes, found.domains)["cell"]
        again = cells.rows(bench, asked, bench)
        parts += [
            '### One class in one domain again, with the templates "a picture of a {class}" and '
            '"a {domain} of a {class}", captions it was trained on',
            cells.table(again),
        ]
        result[folder.name]["cell, one trained template"] = cells.to_json(again, asked)
    write("pacs", "PACS", [*parts, "## Targets", "\n".join(targets)], result)


@main.command("all")
@data_option
@click.pass_context
def everything(context: click.Context, data: Path) -> None:
    """Every table."""
    context.invoke(bundled)
    for command in (imagenet, vocabulary, pacs):
        context.invoke(command, data=data)


def _need(path: Path) -> Path:
    if not path.exists():
        raise Absent(f"{path} is not there: put it there, or name another folder with --data")
    return path


def _kinds(
    bench: cells.Bench, tune: cells.Bench
) -> tuple[list[str], dict[str, Any], dict[str, list[cells.Row]]]:
    """Sections, JSON and rows of every kind of request."""
    asked = cells.requests(bench.features.class_names, bench.features.domain_names)
    found = {kind: cells.rows(bench, asked[kind], tune) for kind in KINDS}
    parts = []
    for kind, title in KINDS.items():
        parts += [f"### {title} ({len(asked[kind])})", cells.table(found[kind])]
    return parts, {kind: cells.to_json(found[kind], asked[kind]) for kind in KINDS}, found


def _unnamed(rows: torch.Tensor, further: torch.Tensor, gone: torch.Tensor) -> names.Task:
    """The user gave no class list: keep every name less near-synonyms of what is forgotten."""
    candidates = torch.cat([rows[~gone], further])
    near = near_synonyms(rows[gone], candidates)
    return names.Task(gone, rows[gone], candidates[~near], int(near.sum()))


def _curve(images: names.Images, rows: torch.Tensor) -> Mapping[str, Any]:
    """Accuracy against the strength of `hull`; draws docs/images/imagenet-strength.png."""
    strengths = [step / 10 for step in range(11)]
    curves: dict[str, list[dict[str, float]]] = {}
    for size in (10, 100):
        tasks = [names.named(rows, gone) for gone in names.choose(len(rows), size)]
        edits = [erasers.hull(task.forget, task.keep) for task in tasks]
        curves[str(size)] = []
        for strength in strengths:
            outcomes = [
                names.outcome(images, task.gone, edit.scale(strength))
                for task, edit in zip(tasks, edits, strict=True)
            ]
            row = names.Row("hull", tuple(outcomes))
            curves[str(size)].append({k: row.mean(k) for k in ("forgotten", "kept")})
    _draw(strengths, curves, IMAGES / "imagenet-strength.png")
    return {"strength": strengths, **curves}


def _draw(
    strengths: Sequence[float], curves: Mapping[str, list[dict[str, float]]], path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for (size, points), style in zip(curves.items(), ("-", "--"), strict=True):
        for key, colour in (("kept", "#0072B2"), ("forgotten", "#D55E00")):
            axes.plot(strengths, [point[key] for point in points], style, color=colour,
                      label=f"{key}, {size} classes forgotten")  # fmt: skip
    axes.set(xlabel="strength of hull", ylabel="accuracy", ylim=(-0.02, 0.7))
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
