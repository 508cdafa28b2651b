"""Adversary: pictures made to be given a forgotten name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.probes import AS_RETRAINED
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NOT_FORGOTTEN,
    Answer,
    Finding,
    Question,
)
from nullspace_unlearn.certificate import certify
from nullspace_unlearn.clip import Clip, encode
from nullspace_unlearn.evaluate import figures
from nullspace_unlearn.evaluate.asking import Asking, rounded
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes.starts import start

RADIUS = 8 / 255
"""How far a pixel of an image may be moved, of 1."""

PICTURES, STEPS = 16, 60
"""Starts and steps of the ascent."""

QUICK_PICTURES, QUICK_STEPS = 8, 20

_LEVELS = 255


@dataclass(frozen=True, eq=False)
class Attacked:
    """Pictures that were made to be given a name.

    Attributes:
        pixels: `[n, 3, rows, columns]` RGB from 0 to 1, in 256 levels.
        lead: `[n]` float64, by how much the name's cosine exceeds the best other one's.
        room: `[n]` the most that it can, by the certificate; inf without one.
    """

    pixels: Float[Tensor, "n 3 rows columns"]
    lead: Float[Tensor, " n"]
    room: Float[Tensor, " n"]

    @property
    def won(self) -> float:
        """Share of the pictures that are given the name."""
        return float((self.lead > 0).double().mean())


def ascend(
    clip: Clip,
    pixels: Float[Tensor, "n 3 rows columns"],
    text: Float[Tensor, "names dim"],
    name: int,
    listed: Bool[Tensor, " names"],
    *,
    steps: int,
    radius: float | None = None,
) -> Attacked:
    """Move pictures until a model gives them a name, by signed gradient steps (1706.06083).

    What is ascended is the lead, the name's cosine less the best listed one's; of the steps the one
    where it is largest counts. Steps fall from a tenth of the way a pixel may go to nothing. The
    pictures found are rounded to 256 levels and measured then.

    Args:
        clip: The model.
        pixels: `[n, 3, rows, columns]` RGB from 0 to 1, to start from.
        text: `[names, dim]` the classifier.
        name: Which of them is aimed at.
        listed: `[names]` those that it must beat.
        steps: How many steps.
        radius: How far a pixel may move; None: anywhere from 0 to 1.

    Returns:
        The pictures, one a start.
    """
    device = clip.device
    names = unit(text.double()).float().to(device)
    others = names[listed.to(device)]
    dtype = next(clip.model.parameters()).dtype
    first = pixels.to(device)
    low, high = (
        (torch.zeros_like(first), torch.ones_like(first))
        if radius is None
        else ((first - radius).clamp(min=0), (first + radius).clamp(max=1))
    )
    now, found = first.clone(), first.clone()
    best = torch.full((len(first),), -torch.inf, device=device)
    for step in range(steps + 1):
        now = now.detach().requires_grad_()
        with torch.enable_grad():
            seen = unit(encode(clip.model, clip.normalise(now).to(dtype)).float())
            lead = seen @ names[name] - (seen @ others.mT).amax(-1)
            (slope,) = torch.autograd.grad(lead.sum(), now)
        now = now.detach()
        better = lead.detach() > best
        best = torch.where(better, lead.detach(), best)
        found[better] = now[better]
        rate = 0.1 * (1 - step / max(steps, 1)) * (1.0 if radius is None else 4 * radius)
        now = torch.minimum(torch.maximum(now + rate * slope.sign(), low), high)
    found = ((found * _LEVELS).round() / _LEVELS).cpu()
    return Attacked(found, *_measured(clip, found, text, name, listed))


def _measured(
    clip: Clip, pixels: Tensor, text: Tensor, name: int, listed: Tensor
) -> tuple[Tensor, Tensor]:
    """Lead and room of pictures, in float64 from what the model makes of them."""
    images = clip.normalise(pixels)
    names = unit(text.double())
    try:
        hidden, embeddings = (rows.double().cpu() for rows in clip.encode_both(images))
    except ValueError:
        hidden, embeddings = None, clip.encode_image(images).double().cpu()
    scores = rounded(unit(embeddings) @ names.mT)
    lead = scores[:, name] - scores[:, listed].amax(-1)
    room = torch.full_like(lead, torch.inf)
    if hidden is not None:
        distance = excess(clip, names[name], names[listed])
        if distance is not None:
            source = torch.cat([hidden, torch.ones_like(hidden[:, :1])], -1)
            room = source.norm(dim=-1) * distance / embeddings.norm(dim=-1)
    return lead, room


def excess(
    clip: Clip, name: Float[Tensor, " dim"], keep: Float[Tensor, "names dim"]
) -> float | None:
    """How far a name's weights are from a convex combination of others', `|u_c - Σ a_k u_k|`.

    On an image with hidden feature h, `s_c - max_k s_k <= |[h, 1]| · excess / |z|` (`Certificate`).

    Args:
        clip: The model.
        name: `[dim]` a unit text prototype.
        keep: `[names, dim]` those of the names that stay.

    Returns:
        The distance, float64; None where the certificate does not hold.
    """
    projection = clip.projection("visual")
    matrix, bias = projection.matrix(), projection.bias()
    proof = certify(matrix, bias, name[None], keep)
    if not bool(proof.holds.all()):
        return None
    rows = matrix if bias is None else torch.cat([matrix, bias[None]])
    combined = proof.weight[0] @ keep[proof.index[0]]
    return float((rows @ (name - combined)).norm())


def ask(case: Case) -> Answer:
    """Make pictures for the forgotten names, from nothing and from images of the case.

    Args:
        case: What is audited.
    """
    asking = Asking.of(case.mask, case.labels, case.domains, len(case.names))
    if not len(asking.classes):
        return Answer.unmeasured("No image is of a forgotten cell, beside others.")
    many, steps = (QUICK_PICTURES, QUICK_STEPS) if case.quick else (PICTURES, STEPS)
    everywhere = case.mask.all(1)
    free: dict[str, list[Attacked]] = {}
    near: dict[str, tuple[list[float], list[float]]] = {}
    for name, view in case.views():
        if view.clip is None:
            continue
        rows, columns = view.clip.image_size
        begin = torch.stack([start(rows, columns, case.seed, i) for i in range(many)])
        for j, c in enumerate(asking.classes.tolist()):
            given = (view.text, c, asking.listed[j])
            if everywhere[c]:
                found = ascend(view.clip, begin, *given, steps=steps)
                free.setdefault(name, []).append(found)
            shares = near.setdefault(name, ([], []))
            for some, share in zip((asking.own[j], asking.others[j]), shares, strict=True):
                pixels = _pixels(case, view, _spaced(asking.images[some], many))
                share.append(ascend(view.clip, pixels, *given, steps=steps, radius=RADIUS).won)
    findings = []
    if free:
        won = {name: _mean([one.won for one in some]) for name, some in free.items()}
        lead = {name: max(float(a.lead.max()) for a in some) for name, some in free.items()}
        room = max(float(one.room.max()) for one in free["edited"])
        number = many * len(free["edited"])
        findings += [
            Finding("free", "pictures made for the name that are given it", "low", won, None,
                    number),
            Finding("lead", "largest lead of the name on such a picture", "low", lead, None,
                    number),
        ]  # fmt: skip
        if room < torch.inf:
            title = "largest lead that the certificate allows there"
            findings.append(Finding("bound", title, "low", {"edited": room}, None, number))
    own, others = ({name: _mean(two[i]) for name, two in near.items()} for i in (0, 1))
    findings.append(
        Finding("near", "forgotten images that 8 of 255 levels a pixel give the name", "chance",
                {**own, "chance": others["edited"]}, None, many * len(asking.classes))
    )  # fmt: skip
    told = {name: own[name] - others[name] for name in own}
    said = (
        f"Moved by 8 of 255 levels a pixel, {own['edited']:.2f} of the forgotten images get the "
        f"name and {others['edited']:.2f} of the others."
    )
    leaks = told["edited"] > figures.FORGOTTEN
    if "retrained" in told and told["edited"] <= told["retrained"] + AS_RETRAINED:
        leaks = False
    if free:
        most = max(float(one.lead.max()) for one in free["edited"])
        bound = f", the certificate allows {room:.1g}" if room < torch.inf else ""
        made = f"{won['edited']:.2f} of the pictures made for the name get it"
        said = f"{made} (largest lead {most:.3g}{bound}). {said}"
        fresh = won.get("retrained")
        leaks |= won["edited"] > (0.0 if fresh is None else fresh + AS_RETRAINED)
    return Answer(NOT_FORGOTTEN if leaks else FORGOTTEN, said, tuple(findings))


def _spaced(images: Int[Tensor, " n"], most: int) -> Int[Tensor, " k"]:
    return images[torch.linspace(0, len(images) - 1, min(len(images), most)).round().long()]


def _pixels(case: Case, view: View, chosen: Tensor) -> Tensor:
    """Some images as RGB from 0 to 1: what the model takes, its normalisation undone."""
    assert case.source is not None and view.clip is not None  # the question needs both
    clip = view.clip
    batches = case.source.subset(chosen).batches(
        clip.preprocess, case.batch_size, case.workers, part=True
    )
    images = torch.cat([batch.images for batch in batches]).to(clip.device)
    zero, one = (clip.normalise(torch.full((3, 1, 1), v, device=clip.device)) for v in (0.0, 1.0))
    return ((images - zero) / (one - zero)).clamp(0, 1).cpu()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


ADVERSARY = Question(
    name="adversary",
    title="Pictures made for the name",
    asks="Can a picture be made, from nothing or by changing an image a little, that gets the "
    "forgotten name?",
    paper="arXiv 1706.06083",
    needs=frozenset({"features", "images", "models"}),
    quick=True,
    ask=ask,
)
