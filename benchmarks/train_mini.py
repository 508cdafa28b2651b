"""Trains nsu-mini, the small CLIP that ships with the package, on pictures it draws itself.

    python benchmarks/train_mini.py --output nullspace_unlearn/data/mini/model

With --class, --domain or both it trains a model that has never seen these cells: the reference for
"truly forgotten". Twenty-odd minutes on two idle cores; where others work too,
OMP_WAIT_POLICY=passive in the environment keeps the threads from burning the time they wait. The
seed fixes pictures, captions and initial weights; threads and bfloat16 leave the last digits to the
machine.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import PatchDropout
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from nullspace_unlearn.data.mini import CLASSES, DOMAINS, MODEL_FOLDER, SIZE, render
from nullspace_unlearn.forget import Forget

# Most of a tiny CLIP's weights are its token embeddings, hence the narrow text tower.
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": SIZE,
        "layers": 6,
        "width": 128,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 3,
    },
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "size": [SIZE, SIZE],
}
ALIASES: dict[str, list[str]] = {
    "car": ["automobile", "sedan"],
    "truck": ["lorry"],
    "bus": ["coach"],
    "bicycle": ["bike"],
    "dog": ["puppy", "hound"],
    "cat": ["kitten"],
    "horse": ["pony"],
    "fish": ["goldfish"],
    "house": ["cottage"],
    "flower": ["blossom"],
}
VOCABULARY: dict[str, Any] = {
    "classes": list(CLASSES),
    "domains": {name: name for name in DOMAINS},
    "templates": {
        "class": [
            "a photo of a {class}.",
            "a picture of a {class}.",
            "an image of a {class}.",
            "a photo of the {class}.",
            "a picture of the {class}.",
        ],
        "cell": [
            "a {domain} of a {class}.",
            "{domain} of a {class}.",
            "a {domain} of the {class}.",
            "a {class} in a {domain}.",
        ],
    },
    "aliases": ALIASES,
}

CLASS_CAPTIONS = ("{it}", "a picture of {it}", "an image of {it}", "this is {it}", "here is {it}")
CELL_CAPTIONS = (
    "a {domain} of {it}",
    "{domain} of {it}",
    "{it} in a {domain}",
    "the {domain} of {it}",
)
DOMAIN_CAPTIONS = ("a {domain}", "{domain}", "this is a {domain}")
DOMAIN_SHARE = 0.06
CELL_SHARE = 0.47
# People write "a photo of" under drawings too; without it the words of the usual prompts would
# mean photographs and nothing else.
LOOSE_SHARE = 0.08
ALIAS_SHARE = 0.12

# Seeing half of the patches for most of the training halves its time; the rest of it shows all.
HIDDEN_PATCHES = 0.5
HIDING_SHARE = 0.7

# Names and pictures in a CLIP of the web lean one way: ImageNet's names have a mean cosine of 0.6.
# Twelve classes leave room to spread out instead; then a score of 0 beats most others, and what a
# projection removes, it does not make forgotten. So both towers get a lean of this sine.
LEAN = 0.65

UNSEEN = 1_000_000  # seeds from here on are never trained on


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures and what is on them.

    Attributes:
        pixels: ``[n, 3, SIZE, SIZE]``, bytes.
        classes: Index into ``CLASSES``, ``[n]``.
        domains: Index into ``DOMAINS``, ``[n]``.
    """

    pixels: Tensor
    classes: Tensor
    domains: Tensor


def _draw_cell(job: tuple[int, int, range]) -> NDArray[np.uint8]:
    class_index, domain_index, seeds = job
    drawn = [np.asarray(render(CLASSES[class_index], DOMAINS[domain_index], s)) for s in seeds]
    return np.stack(drawn).transpose(0, 3, 1, 2)


def draw(seeds: range, workers: int = 2, without: Forget | None = None) -> Pictures:
    """Draws the same number of pictures of every cell.

    Args:
        seeds: Seeds to draw of each cell.
        workers: Processes that draw.
        without: Cells to leave out.

    Returns:
        The pictures, cell by cell.
    """
    grid = torch.ones(len(CLASSES), len(DOMAINS), dtype=torch.bool)
    stays = grid if without is None else ~without.mask(CLASSES, DOMAINS)
    cells = stays.nonzero().tolist()
    jobs = [(c, d, seeds) for c, d in cells]
    # Spawned rather than forked: torch has started threads by now.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        drawn = list(tqdm(pool.imap(_draw_cell, jobs), "draw", len(jobs), file=sys.stderr))
    classes, domains = torch.tensor(cells).repeat_interleave(len(seeds), 0).unbind(1)
    return Pictures(torch.from_numpy(np.concatenate(drawn)), classes, domains)


def caption(class_index: int, domain_index: int, rng: np.random.Generator) -> tuple[str, int, int]:
    """Writes a caption for a picture of a cell.

    Args:
        class_index: What is on the picture.
        domain_index: How it is drawn.
        rng: Source of the wording.

    Returns:
        The caption, and the class and the domain that it names (-1 where it names none).
    """
    name, domain = CLASSES[class_index], DOMAINS[domain_index]
    if name in ALIASES and rng.random() < ALIAS_SHARE:
        name = rng.choice(ALIASES[name])
    article = "an" if name[0] in "aeiou" else "a"
    it = f"the {name}" if rng.random() < 0.25 else f"{article} {name}"
    says_class, says_domain = class_index, domain_index
    kind = rng.random()
    if kind < DOMAIN_SHARE:
        template, says_class = rng.choice(DOMAIN_CAPTIONS), -1
    elif kind < DOMAIN_SHARE + CELL_SHARE:
        template = rng.choice(CELL_CAPTIONS)
    elif kind < DOMAIN_SHARE + CELL_SHARE + LOOSE_SHARE:
        template, says_domain = "a photo of {it}", DOMAINS.index("photo")
    else:
        template, says_domain = rng.choice(CLASS_CAPTIONS), -1
    text = str(template).format(it=it, domain=domain) + ("." if rng.random() < 0.5 else "")
    return text, says_class, says_domain


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts, mirrors, tints and roughens a batch of byte pictures; returns them in [0, 1]."""
    n, side, margin = len(pixels), pixels.shape[-1], 4

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    padded = F.pad(pixels.float() / 255, [margin] * 4, mode="replicate")
    first = torch.randint(0, 2 * margin + 1, (2, n, 1), generator=generator)
    rows, columns = first + torch.arange(side)
    columns = torch.where(uniform(n, 1) < 0.5, columns, columns.flip(1))
    picture = torch.arange(n)[:, None, None, None]
    channel = torch.arange(3)[None, :, None, None]
    x = padded[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]
    x = x * (0.85 + 0.3 * uniform(n, 1, 1, 1)) * (0.94 + 0.12 * uniform(n, 3, 1, 1))
    x = x + 0.03 * uniform(n, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)


def positives(classes: Tensor, domains: Tensor, says_class: Tensor, says_domain: Tensor) -> Tensor:
    """Which captions fit which pictures ``[n, n]``: what a caption names must be so.

    A picture's own caption always fits, loosely worded or not.
    """
    fits = (says_class == -1) | (says_class == classes[:, None])
    fits &= (says_domain == -1) | (says_domain == domains[:, None])
    return fits | torch.eye(len(classes), dtype=torch.bool)


def contrastive_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Symmetric cross-entropy, the target spread evenly over every pair that fits."""
    target = fits.float()
    rows = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    columns = F.cross_entropy(logits.T, (target / target.sum(0, keepdim=True)).T)
    return (rows + columns) / 2


def normalise(pixels: Tensor) -> Tensor:
    """Applies the preprocessing's mean and spread to pictures in [0, 1]."""
    mean, std = (torch.tensor(PREPROCESS_CONFIG[k])[:, None, None] for k in ("mean", "std"))
    return (pixels - mean) / std


def train(
    pictures: Pictures, steps: int, batch_size: int, rate: float, seed: int
) -> open_clip.CLIP:
    """Trains a fresh model.

    Args:
        pictures: What to train on.
        steps: Optimiser steps.
        batch_size: Pictures a step.
        rate: Peak learning rate.
        seed: Fixes initial weights, order, wording and augmentation.

    Returns:
        The trained model.
    """
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = open_clip.CLIP(**MODEL_CONFIG)
    model.visual.patch_dropout = PatchDropout(HIDDEN_PATCHES)
    tokenize = lru_cache(maxsize=None)(
        lambda text: open_clip.tokenize(text, MODEL_CONFIG["text_cfg"]["context_length"])[0]
    )
    # Matrices decay; biases, norms, the scale, and words that may not occur for long do not.
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and "embedding" not in name
        (matrices if decays else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    warmup = max(1, steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    order = torch.empty(0, dtype=torch.long)
    bar = tqdm(range(steps), "train", file=sys.stderr, mininterval=5)
    for step in bar:
        if step == int(HIDING_SHARE * steps):
            model.visual.patch_dropout = torch.nn.Identity()
        if len(order) < batch_size:
            order = torch.randperm(len(pictures.pixels), generator=generator)
        chosen, order = order[:batch_size], order[batch_size:]
        classes, domains = pictures.classes[chosen], pictures.domains[chosen]
        texts, says_class, says_domain = zip(
            *(caption(c, d, rng) for c, d in zip(classes.tolist(), domains.tolist(), strict=True)),
            strict=True,
        )
        unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        fits = positives(classes, domains, torch.tensor(says_class), torch.tensor(says_domain))
        with torch.autocast("cpu", torch.bfloat16):
            images = model.encode_image(normalise(augment(pictures.pixels[chosen], generator)))
            words = model.encode_text(torch.stack([tokenize(text) for text in unique]))
        images, words = F.normalize(images.float(), dim=-1), F.normalize(words.float(), dim=-1)
        captions = words[[unique[text] for text in texts]]
        loss = contrastive_loss(model.logit_scale.exp() * images @ captions.T, fits)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.0f}")
    return model


@torch.no_grad()
def lean(model: open_clip.CLIP, pictures: Pictures, share: float) -> None:
    """Adds one constant direction to both towers, in the biases before their projections.

    The direction is the one that pictures and texts use least, so that it tells nothing about
    them; hence what the model recognises stays.

    Args:
        model: The model, changed in place.
        pictures: Some pictures it knows.
        share: Sine of the angle by which a typical embedding turns towards the direction.
    """
    model.eval()
    batches = pictures.pixels.split(256)
    images = torch.cat([model.encode_image(normalise(b.float() / 255)) for b in batches])
    templates = VOCABULARY["templates"]["class"] + VOCABULARY["templates"]["cell"]
    prompts = [
        t.replace("{class}", c).replace("{domain}", d)
        for t in templates
        for c in CLASSES
        for d in DOMAINS
    ]
    length = MODEL_CONFIG["text_cfg"]["context_length"]
    texts = model.encode_text(open_clip.tokenize(prompts, length))

    def moment(x: Tensor) -> Tensor:
        x = F.normalize(x, dim=-1)
        return x.T @ x / len(x)

    # The text tower is narrower than the joint space: look where it can reach.
    reachable = torch.linalg.qr(model.text_projection.T).Q
    used = reachable.T @ (moment(images) + moment(texts)) @ reachable
    direction = reachable @ torch.linalg.eigh(used).eigenvectors[:, 0]
    tangent = share / math.sqrt(1 - share**2)
    for bias, projection, features in (
        (model.visual.ln_post.bias, model.visual.proj, images),
        (model.ln_final.bias, model.text_projection, texts),
    ):
        wanted = features.norm(dim=1).median() * tangent * direction
        bias += torch.linalg.pinv(projection.T) @ wanted
    # The lean shrinks every difference between scores; the scale makes up for it.
    scale = model.logit_scale.exp() / (1 - share**2)
    model.logit_scale.copy_(scale.clamp(max=100).log())


@dataclass(frozen=True)
class Scores:
    """What a model folder can do on pictures it was not trained on.

    Attributes:
        cells: Class accuracy of each cell with the vocabulary's templates, ``[class, domain]``.
        overall: Its mean.
        templates: For each single class template, overall and lowest cell accuracy.
        cell_recognition: Share of pictures whose own cell prompt scores highest of all cells'.
        domain_recognition: Share of those whose highest cell prompt names the right domain.
        domain_probe: Accuracy of a linear probe for the domain on embeddings of other pictures.
        aliases: Class accuracy, over the classes that have one, with aliases in place of names.
        cosine: Mean cosine between the text prototypes of two classes.
    """

    cells: NDArray[np.float64]
    overall: float
    templates: dict[str, tuple[float, float]]
    cell_recognition: float
    domain_recognition: float
    domain_probe: float
    aliases: float
    cosine: float


@torch.no_grad()
def evaluate(folder: Path, pictures: Pictures) -> Scores:
    """Measures a written model folder, loaded the way anyone would load it.

    Args:
        folder: The folder of the model.
        pictures: Pictures that the model was not trained on, the same number of each cell.

    Returns:
        The scores.
    """
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    batches = pictures.pixels.split(256)
    images = torch.cat(
        [model.encode_image(normalise(b.float() / 255), normalize=True) for b in batches]
    )

    def prototype(prompts: list[str]) -> Tensor:
        return F.normalize(model.encode_text(tokenize(prompts), normalize=True).mean(0), dim=-1)

    def prototypes(templates: list[str], names: list[str]) -> Tensor:
        return torch.stack([prototype([t.replace("{class}", n) for t in templates]) for n in names])

    classes, domains = pictures.classes, pictures.domains
    grid = (len(CLASSES), len(DOMAINS))

    def by_cell(right: Tensor) -> NDArray[np.float64]:
        sums = torch.zeros(grid, dtype=torch.float64)
        sums.index_put_((classes, domains), right.double(), accumulate=True)
        return (sums * len(DOMAINS) * len(CLASSES) / len(right)).numpy()

    def class_accuracy(templates: list[str], names: list[str]) -> NDArray[np.float64]:
        return by_cell((images @ prototypes(templates, names).T).argmax(1) == classes)

    templates = VOCABULARY["templates"]
    cells = class_accuracy(templates["class"], list(CLASSES))
    single = {t: class_accuracy([t], list(CLASSES)) for t in templates["class"]}
    names = torch.stack(
        [
            prototypes([t.replace("{domain}", d) for t in templates["cell"]], [c])[0]
            for c in CLASSES
            for d in DOMAINS
        ]
    )
    guess = (images @ names.T).argmax(1)
    other = class_accuracy(templates["class"], [ALIASES.get(c, [c])[0] for c in CLASSES])
    text = prototypes(templates["class"], list(CLASSES))
    pairs = text @ text.T
    aliased = [i for i, c in enumerate(CLASSES) if c in ALIASES]

    # Ridge regression to one-hot domains: even pictures fit it, odd ones test it.
    x = torch.cat([images, torch.ones(len(images), 1)], 1)
    fit, held = x[::2], x[1::2]
    target = F.one_hot(domains[::2], len(DOMAINS)).float()
    ridge = torch.linalg.solve(fit.T @ fit + 1e-3 * torch.eye(x.shape[1]), fit.T @ target)
    probe = (held @ ridge).argmax(1) == domains[1::2]
    return Scores(
        cells=cells,
        overall=float(cells.mean()),
        templates={t: (float(a.mean()), float(a.min())) for t, a in single.items()},
        cell_recognition=(guess == classes * grid[1] + domains).double().mean().item(),
        domain_recognition=(guess % grid[1] == domains).double().mean().item(),
        domain_probe=probe.double().mean().item(),
        aliases=float(other[aliased].mean()),
        cosine=pairs[~torch.eye(len(pairs), dtype=torch.bool)].mean().item(),
    )


def table(scores: Scores) -> str:
    """Class accuracy of each cell, as a Markdown table."""
    lines = ["| class | " + " | ".join(DOMAINS) + " |", "|---" * (len(DOMAINS) + 1) + "|"]
    for name, row in zip(CLASSES, scores.cells, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{a:.3f}" for a in row) + " |")
    means = " | ".join(f"{a:.3f}" for a in scores.cells.mean(0))
    return "\n".join([*lines, f"| **all** | {means} |"])


def summary(scores: Scores) -> str:
    """The other scores, as a Markdown list."""
    lines = [f"- all class templates: {scores.overall:.3f}, lowest cell {scores.cells.min():.3f}"]
    for template, (overall, lowest) in scores.templates.items():
        lines.append(f"- `{template}` alone: {overall:.3f}, lowest cell {lowest:.3f}")
    return "\n".join(
        [
            *lines,
            f"- with an alias in place of the name: {scores.aliases:.3f}",
            f"- cell (class and domain) by cell prompts: {scores.cell_recognition:.3f}",
            f"- domain by cell prompts: {scores.domain_recognition:.3f}",
            f"- domain by a linear probe on embeddings: {scores.domain_probe:.3f}",
        ]
    )


CARD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
license: apache-2.0
tags: [clip, unlearning]
---

# nsu-mini

A small CLIP ({parameters:.1f} M weights, float16) of {classes} classes in {domains} domains:
{names};
as {kinds}.
It ships with nullspace-unlearn so that everything can be tried, tested and measured offline in
seconds. It knows nothing else: it is not a model of real pictures.

```python
import open_clip
from nullspace_unlearn.data.mini import MODEL_FOLDER, render

model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{MODEL_FOLDER}}")
tokenize = open_clip.get_tokenizer(f"local-dir:{{MODEL_FOLDER}}")
picture = preprocess(render("car", "sketch", seed=0))
```

## Training

From scratch on {pictures:,} pictures drawn by `nullspace_unlearn.data.mini.render`, with captions
of which about half name the domain; every caption that fits a picture counts as a positive.
{steps:,} steps of {batch_size} pictures took {minutes:.0f} minutes on {threads} CPU cores.

    {command}

CLIPs trained on the web put all names and pictures into a narrow cone; twelve classes alone would
spread out, and erasing one by projection would not behave as it does on a real CLIP. So after
training one constant direction, which pictures and texts hardly used, was added to both towers (in
the biases before their projections); class prototypes now have a mean cosine of {cosine:.2f}.

## Accuracy on {unseen} unseen pictures a cell

Zero-shot class accuracy with the class templates of `vocabulary.json`:

{table}

{summary}

Licence: Apache-2.0.
"""


def write_weights(model: open_clip.CLIP, folder: Path) -> None:
    """Writes configuration, vocabulary and float16 weights."""
    folder.mkdir(parents=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY, indent=2) + "\n")
    weights = {name: w.detach().half().contiguous() for name, w in model.state_dict().items()}
    (folder / "open_clip_model.safetensors").write_bytes(save(weights))


def replace_folder(new: Path, old: Path) -> None:
    """Moves a finished folder to its place, so that nobody ever meets half of one."""
    retired = old.with_name(f".{old.name}-retired")
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=MODEL_FOLDER, show_default=True,
              help="Folder of the model; replaced when done.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=1800, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=192, show_default=True)
@click.option("--pictures", type=click.IntRange(1), default=800, show_default=True,
              help="Training pictures of each cell.")  # fmt: skip
@click.option("--unseen", type=click.IntRange(2), default=100, show_default=True,
              help="Test pictures of each cell.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True,
              help="Peak learning rate.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True,
              help="CPU threads and drawing processes.")  # fmt: skip
@click.option("--class", "classes", multiple=True, type=click.Choice(CLASSES),
              help="Never show this class; with --domain, in that domain only.")  # fmt: skip
@click.option("--domain", "domains", multiple=True, type=click.Choice(DOMAINS),
              help="Never show this domain.")  # fmt: skip
def main(output: Path, steps: int, batch_size: int, pictures: int, unseen: int, rate: float,
         seed: int, threads: int, classes: tuple[str, ...],
         domains: tuple[str, ...]) -> None:  # fmt: skip
    """Draws pictures, trains nsu-mini on them, tests it on others and writes its folder."""
    torch.set_num_threads(threads)
    start = time.monotonic()
    output = output.resolve()
    without = Forget(classes, domains) if classes or domains else None
    if without is not None and output == MODEL_FOLDER.resolve():
        raise click.UsageError("the bundled model has seen every cell: name another --output")
    known = draw(range(seed * pictures, (seed + 1) * pictures), threads, without)
    model = train(known, steps, batch_size, rate, seed)
    every = slice(None, None, 20)
    lean(model, Pictures(known.pixels[every], known.classes[every], known.domains[every]), LEAN)
    minutes = (time.monotonic() - start) / 60
    folder = output.with_name(f".{output.name}-new")
    shutil.rmtree(folder, ignore_errors=True)
    write_weights(model, folder)
    scores = evaluate(folder, draw(range(UNSEEN, UNSEEN + unseen), threads))
    options = f"--steps {steps} --batch-size {batch_size} --pictures {pictures}"
    options += "".join(f" --class {name}" for name in classes)
    options += "".join(f" --domain {name}" for name in domains)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        classes=len(CLASSES),
        domains=len(DOMAINS),
        names=", ".join(CLASSES),
        kinds=", ".join(DOMAINS),
        pictures=len(known.pixels),
        steps=steps,
        batch_size=batch_size,
        minutes=minutes,
        cosine=scores.cosine,
        threads=threads,
        command=f"python benchmarks/train_mini.py {options} --rate {rate} --seed {seed}",
        unseen=unseen,
        table=table(scores),
        summary=summary(scores),
    )
    (folder / "README.md").write_text(card)
    replace_folder(folder, output)
    click.echo(table(scores) + "\n\n" + summary(scores))


if __name__ == "__main__":
    main()
