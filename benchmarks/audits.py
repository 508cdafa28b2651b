"""Audits of every method: `python benchmarks/audits.py`.

Cars everywhere, and cars in sketches, by the bundled model; ten classes everywhere, and cells, by
a real CLIP's features where these are at hand. Every audit leaves one JSON in the work folder, so
that a command that was cut short goes on where it stopped; then benchmarks/results/audits.md and
.json, and the tables of docs/audits.md, are written from what is there.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import torch
from _tables import RESULTS, markdown, rounded
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import nullspace_unlearn as nsu
from nullspace_unlearn import erasers, looks, plans, train, unlearn
from nullspace_unlearn.audit.attacks import QUESTIONS
from nullspace_unlearn.audit.case import Case
from nullspace_unlearn.audit.opening import Choices, of_features, of_models
from nullspace_unlearn.audit.question import Answer
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import Drawing, bundled_to_learn, bundled_to_report
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.features import read_features
from nullspace_unlearn.files import new_file
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes.text_cache import cached_text
from nullspace_unlearn.train.shots import from_source

ROOT = Path(__file__).parents[1]
REQUESTS = {"everywhere": Forget(["car"]), "in sketches": Forget(["car"], ["sketch"])}
EACH, SHOTS, VALIDATION = 8, 8, 4
"""Pictures a cell to report on, to learn from and to choose by."""

ASKED = tuple(question.name for question in QUESTIONS if question.name != "several-edits")
QUICKLY = ("relearning", "finetuning", "adversary")
"""Questions asked with the numbers of --quick: fewer draws; one learning rate; fewer pictures."""
NO_RANDOM = ("finetuning", "adversary", "storage")
"""Questions that are too dear to ask of the random change."""

CLOSED: dict[str, dict[str, tuple[str, dict[str, Any], bool]]] = {
    "everywhere": {
        "hull": ("hull", {}, False),
        "hull, depth 0": ("hull", {"depth": 0.0}, False),
        "two_sided, 8 images": ("two_sided", {}, True),
        "nullspace": ("nullspace", {}, False),
        "ccup": ("ccup", {}, False),
        "leace": ("leace", {}, False),
    },
    "in sketches": {
        "neutral, 8 images": ("neutral", {}, True),
        "nullspace": ("nullspace", {}, False),
        "ccup": ("ccup", {}, False),
        "leace": ("leace", {}, False),
    },
}
"""Request -> row -> method, its numbers, whether it is shown images."""

MARK = "<!-- from here on written by benchmarks/audits.py -->"

TRAINED: dict[str, dict[str, dict[str, Any]]] = {
    "salun": {"global": {"lr": 1e-4, "epochs": 8}, "cell": {"lr": 6e-4, "epochs": 8}},
    "adu": {"global": {"lr": 1e-2, "epochs": 6}, "cell": {"lr": 1e-2, "epochs": 6}},
    "cliperase": {"global": {"lr": 1e-4, "epochs": 6}, "cell": {"lr": 2e-4, "epochs": 6}},
}
"""Row -> kind of request -> numbers, chosen with `trained.py tune` on images that no table reports,
for requests of that kind."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A bundled picture that is drawn once, since every copy of a model looks at it again."""

    of: Drawing
    image: Image.Image

    name = property(lambda self: self.of.name)
    holder = property(lambda self: self.of.holder)
    place = property(lambda self: self.of.place)

    def open(self) -> Any:
        """What decides the drawing."""
        return self.of.open()

    def decode(self) -> Image.Image:
        """The image in RGB."""
        return self.image


@cache
def untouched() -> Clip:
    """The bundled model."""
    return nsu.load("nsu-mini", device="cpu")


@cache
def pictures() -> Source:
    """What is reported on."""
    source = bundled_to_report(EACH)
    return replace(source, pictures=tuple(Drawn(p, p.decode()) for p in source.pictures))


def closed(request: str, row: str) -> Clip:
    """The bundled model after a closed form."""
    name, numbers, shown = CLOSED[request][row]
    clip = untouched()
    plan = plans.plan(clip, REQUESTS[request], method=name, images=shown)
    look = looks.Looks(
        prototypes="text", images=bundled_to_learn(SHOTS)[0] if shown else None, quiet=True
    ).reading(clip, plan)
    visual = look.make(clip, plan, look.drawn(plan))
    space = look.space if shown else None
    return unlearn.erase(clip, plan, numbers=numbers, visual=visual, space=space).fold(clip)


def trained(request: str, row: str) -> Clip:
    """The bundled model after a trained method."""
    clip, forget = untouched(), REQUESTS[request]
    numbers = TRAINED[row][forget.paradigm]
    method = train.configure(row, {key: str(value) for key, value in numbers.items()})
    shots, validation = (from_source(clip, some) for some in bundled_to_learn(SHOTS, VALIDATION))
    assert clip.words is not None
    task = train.Task(clip, forget, clip.words, shots, validation)
    return train.train(method, task, quiet=True).clip


def case_of(request: str, edited: Clip, work: Path, retrained: Clip | None = None) -> Case:
    """The bundled pictures under a model."""
    names = [n for n in mini.CLASSES if n not in REQUESTS[request].classes or "in" in request]
    subject = of_models(
        untouched(), edited, pictures(), forget=REQUESTS[request], retrained=retrained, names=names,
        choices=Choices(draws=100),
    )  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    return subject.case(work)


def answers(case: Case, first: bool = True) -> dict[str, Any]:
    """What is asked, answered.

    The random change and the untouched model's fine-tuning of a table's first row stand for all
    of it: they are dear, and the same whatever the method.
    """
    case = case if first else replace(case, random=None)
    said = {}
    for question in tqdm([one for one in QUESTIONS if one.name in ASKED], leave=False):
        few = case if question.name not in QUICKLY else replace(case, quick=True)
        if question.name in NO_RANDOM:
            few = replace(few, random=None)
        alone = question.name == "finetuning" and not first and "models" in few.has
        if alone:
            few = replace(few, original=replace(few.original, clip=None))
        try:
            with cached_text(None):
                answer = question.ask(few) if alone else question.answer(few)
        except (RuntimeError, ValueError) as error:
            answer = Answer.unmeasured(" ".join(str(error).split()))
        said[question.name] = answer.to_json()
    return said


def _answered(first: bool, case: Callable[[], Case]) -> dict[str, Any]:
    return answers(case(), first)


def bundled_audit(request: str, row: str, work: Path, retrained: Path | None) -> dict[str, Any]:
    """One audit by the bundled model."""
    if row == "retrained":
        assert retrained is not None
        plain = closed(request, "nullspace")
        case = case_of(request, plain, work / "features", nsu.load(retrained, device="cpu"))
        assert case.retrained is not None  # it was given
        return answers(replace(case, edited=case.retrained, retrained=None), first=False)
    edited = closed(request, row) if row in CLOSED[request] else trained(request, row)
    first = row == next(iter(CLOSED[request]))
    return answers(case_of(request, edited, work / "features"), first)


def real_case(
    before: Features, make: Callable[[], Edit], forget: Forget, domains: tuple[str, ...]
) -> Case:
    """A real CLIP's features, edited."""
    after = replace(before, embeddings=make().apply(before.embeddings))
    source = Source(
        "a real CLIP's features", "features", before.class_names, domains, domains, before.labels,
        torch.zeros_like(before.labels) if before.domains is None else before.domains,
        features=before,
    )  # fmt: skip
    choices = Choices(draws=100)
    return of_features(before, after, source, forget, choices=choices).case()


def imagenet(data: Path) -> dict[str, Callable[[], Case]]:
    """Ten classes everywhere, from names alone: row -> its case."""
    before = read_features(data / "data" / "clip_vitb32" / "imagenet_4shot.npz")
    assert before.text is not None
    text = unit(before.text.double())
    odd = torch.arange(1, len(text), 2)
    gone = odd[torch.randperm(len(odd), generator=torch.Generator().manual_seed(0))[:10]]
    kept = torch.ones(len(text), dtype=torch.bool)
    kept[gone] = False
    forget = Forget([before.class_names[c] for c in gone.tolist()])
    f, k = text[gone], text[kept]
    edits: dict[str, Callable[[], Edit]] = {
        "hull": lambda: erasers.hull(f, k),
        "hull, depth 0": lambda: erasers.hull(f, k, depth=0.0),
        "nullspace": lambda: erasers.nullspace(f),
        "ccup": lambda: erasers.ccup(f, k),
        "leace": lambda: erasers.leace(f, k),
    }
    cases = {row: partial(real_case, before, make, forget, ()) for row, make in edits.items()}
    shown, rest = apart(before, 1)
    images = unit(shown.embeddings[shown.labels.argsort()].double())
    cases["two_sided, 1 image"] = partial(
        real_case, rest, lambda: erasers.two_sided(f, k, images[gone], images[kept]), forget, ()
    )
    return cases


def apart(held: Features, each: int) -> tuple[Features, Features]:
    """As many images of each cell for an edit, and the others to report on."""
    domains = torch.zeros_like(held.labels) if held.domains is None else held.domains
    cell = held.labels * max(1, len(held.domain_names)) + domains
    order = torch.randperm(len(cell), generator=torch.Generator().manual_seed(0))
    shown = torch.zeros(len(cell), dtype=torch.bool)
    for one in cell.unique():
        shown[order[cell[order] == one][:each]] = True
    return held.subset(shown.nonzero()[:, 0]), held.subset((~shown).nonzero()[:, 0])


def thumbnails(data: Path) -> dict[str, Callable[[], Case]]:
    """One class in thumbnails, from four images a cell, which are not reported on."""
    held = read_features(data / "data" / "clip_vitb32" / "thumbnails_vs_photos_vitb32.npz")
    assert held.domains is not None and held.text is not None
    given, before = apart(held, 4)
    classes, text = held.class_names, unit(held.text.double())
    small = next(i for i, name in enumerate(held.domain_names) if "thumb" in name)
    forget = Forget([classes[1]], [held.domain_names[small]])
    mask = forget.mask(classes, held.domain_names)
    assert given.domains is not None
    shown = (given.embeddings.double(), given.labels, given.domains)
    cells = unit(prototypes(*shown, mask).flatten(0, 1))
    f, k = cells[mask.flatten()], cells[~mask.flatten()]
    edits: dict[str, Callable[[], Edit]] = {
        "neutral, 4 images": lambda: erasers.neutral(
            *shown, mask, classes=text, numbers=erasers.choose_neutral(*shown, text, mask)
        ),
        "gated, 4 images": lambda: erasers.gated(
            *shown, text, mask, numbers=erasers.leave_out(*shown, text, mask)
        ),
        "nullspace, 4 images": lambda: erasers.nullspace(f),
        "ccup, 4 images": lambda: erasers.ccup(f, k),
        "leace, 4 images": lambda: erasers.leace(f, k),
    }
    columns = held.domain_names
    return {row: partial(real_case, before, make, forget, columns) for row, make in edits.items()}


def prototypes(
    rows: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    domains: Int[Tensor, " n"],
    mask: Bool[Tensor, "classes domains"],
) -> Float[Tensor, "classes domains dim"]:
    """The mean of each cell's unit embeddings."""
    sums = torch.zeros(*mask.shape, rows.shape[1], dtype=rows.dtype)
    return sums.index_put_((labels, domains), unit(rows), accumulate=True)


REAL = {
    "ten ImageNet classes, a real CLIP": imagenet,
    "a class in thumbnails, a real CLIP": thumbnails,
}


# Question -> columns: head, finding.
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "yardstick": (("left", "left"), ("over", "over"), ("cost", "cost")),
    "names": (
        ("named(2)", "named_2"),
        ("named(5)", "named_5"),
        ("named(10)", "named_10"),
        ("named(all)", "named_all"),
    ),
    "over-forgetting": (("over", "over"), ("named(2)", "named_2"), ("found", "found")),
    "collateral": (
        ("paid most", "paid"),
        ("kept search", "kept_search"),
        ("nearest names", "nearest"),
        ("never named", "never_named"),
        ("calibration error", "calibration"),
        ("image to text R@1", "image_to_text_1"),
        ("text to image R@1", "text_to_image_1"),
    ),
    "search": (("by name", "found"), ("by one image", "found_by_image")),
    "retention": (
        ("embedding, logistic", "embedding_logistic"),
        ("embedding, nearest mean", "embedding_nearest"),
        ("hidden, logistic", "hidden_logistic"),
        ("hidden, nearest mean", "hidden_nearest"),
        ("shuffled labels", "shuffled"),
    ),
    "relearning": tuple((f"{k} image{'s' * (k > 1)}", f"shots_{k}") for k in (1, 2, 4, 8, 16)),
    "finetuning": (
        ("16 steps, 8 images of each class", "finetuned_all"),
        ("16 steps, kept images alone", "finetuned_kept"),
    ),
    "adversary": (
        ("made from nothing", "free"),
        ("largest lead", "lead"),
        ("bound", "bound"),
        ("forgotten images moved by 8/255", "near"),
    ),
    "storage": tuple(
        (f"{kind}: {figure}", f"{kind}_{figure}")
        for kind in ("float16", "bfloat16", "int8", "int4")
        for figure in ("left", "cost")
    ),
    "membership": (("AUC", "auc"), ("TPR at 1 % FPR", "tpr")),
    "restoring": (("left, projection put back", "projection"),),
}
COLUMN_OF_ROWS = {"names": "worst phrasing", "collateral": "class that lost most"}
BESIDE_CHANCE = ("names", "search", "over-forgetting")
"""Questions whose figures stand beside chance, which is another of every method."""
CONTROLS = {"untouched": "original", "random change": "random", "chance": "chance"}


def table(name: str, audits: Mapping[str, Mapping[str, Any]]) -> str:
    """One question, a row a method, the controls below."""
    columns = COLUMNS[name]
    beside = name in BESIDE_CHANCE

    def cells(answer: Mapping[str, Any], whose: str) -> list[str]:
        findings = {one["name"]: one for one in answer["findings"]}
        shown = []
        for _, key in columns:
            values = findings[key]["values"] if key in findings else {}
            value, chance = values.get(whose), values.get("chance")
            told = "-" if value is None else _short(value)
            if beside and whose == "edited" and findings.get(key, {}).get("good") == "chance":
                told += "" if chance is None else f" ({_short(chance)})"
            shown.append(told)
        return shown

    worst = COLUMN_OF_ROWS.get(name)
    lines = [
        [row, *cells(said[name], "edited"), *_worst(said[name], worst), said[name]["verdict"]]
        for row, said in audits.items()
        if name in said
    ]
    first = [said[name] for row, said in audits.items() if name in said and row != "retrained"]
    for row, whose in CONTROLS.items():
        for answer in first[: 0 if beside and whose == "chance" else 1]:
            shown = cells(answer, whose)
            if any(cell != "-" for cell in shown):
                lines.append([f"*{row}*", *shown, *([""] if worst else []), ""])
    header = [head for head, _ in columns] + ([worst] if worst else [])
    used = [i for i in range(len(header)) if any(line[i + 1] not in ("-", "") for line in lines)]
    return markdown(
        ["method", *(header[i] for i in used), "verdict"],
        [[line[0], *(line[i + 1] for i in used), line[-1]] for line in lines],
    )


def _worst(answer: Mapping[str, Any], column: str | None) -> list[str]:
    """The row of an answer that tells most, where the table has a column for it."""
    rows = [one for one in answer["rows"] if one["kind"] != "wider" and one["value"] is not None]
    if column is None or not rows:
        return [] if column is None else ["-"]
    one = rows[0]
    before = "" if one["original"] is None else f"{_short(one['original'])} -> "
    return [f"{one['text']}: {before}{_short(one['value'])}"]


def _short(value: float) -> str:
    if 1e-12 < abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.2f}".replace("-0.00", "0.00")


def rows_of(request: str, retrained: Path | None) -> Sequence[str]:
    """The rows of a request by the bundled model."""
    rows = (*CLOSED[request], *TRAINED)
    return (*rows, "retrained") if retrained is not None and request == "in sketches" else rows


def write(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """The tables, and every answer."""
    titles = {question.name: question for question in QUESTIONS}
    parts = []
    for name in ASKED:
        asks = titles[name].asks + " In brackets: chance." * (name in BESIDE_CHANCE)
        parts.append(f"## {titles[name].title}\n\n{asks}")
        for request, audits in found.items():
            there = {row: said for row, said in audits.items() if said[name]["findings"]}
            if there:
                parts.append(f"{request[0].upper()}{request[1:]}:\n\n{table(name, there)}")
    RESULTS.mkdir(exist_ok=True)
    tables = "\n\n".join(parts) + "\n"
    head = "# Audits\n\nMade by `python benchmarks/audits.py`; what they say: docs/audits.md.\n\n"
    (RESULTS / "audits.md").write_text(head + tables, encoding="utf-8")
    page = ROOT / "docs" / "audits.md"
    prose = page.read_text(encoding="utf-8").split(MARK)[0]
    page.write_text(f"{prose}{MARK}\n\n{tables}", encoding="utf-8")
    text = json.dumps(rounded(found), ensure_ascii=False)
    (RESULTS / "audits.json").write_text(text + "\n", encoding="utf-8")


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("audit-runs"),
              show_default=True, help="Where audits leave their answers.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared",
              show_default="../shared beside the checkout")  # fmt: skip
@click.option("--retrained", type=click.Path(path_type=Path, exists=True),
              help="A model of train_mini.py --class car --domain sketch.")  # fmt: skip
@click.option("--only", multiple=True, metavar="ROW", help="Make only these; tables show what is.")
def main(work: Path, data: Path, retrained: Path | None, only: tuple[str, ...]) -> None:
    """Audit every method."""
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    jobs: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []
    rows = [(request, row) for request in REQUESTS for row in rows_of(request, retrained)]
    for request, row in sorted(rows, key=lambda one: one[1] in TRAINED):  # what takes long, last
        make = partial(bundled_audit, request, row, work, retrained)
        jobs.append((f"cars {request}", row, make))
    for request, cases in REAL.items():
        if (data / "data" / "clip_vitb32").exists():
            for place, (row, case) in enumerate(cases(data).items()):
                jobs.append((request, row, partial(_answered, place == 0, case)))
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for request, row, make in tqdm(jobs, "audits"):
        file = work / (re.sub(r"[^\w.-]+", "_", f"{request}-{row}") + ".json")
        if only and row not in only and not file.exists():
            continue
        if not file.exists():
            said = make()
            with new_file(file, overwrite=True) as temporary:
                temporary.write_text(json.dumps(said), encoding="utf-8")
        found.setdefault(request, {})[row] = json.loads(file.read_text(encoding="utf-8"))
    write(found)


if __name__ == "__main__":
    main()
