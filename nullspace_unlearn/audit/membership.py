"""Membership: whether a model's confidence alone tells which images it was made to forget."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nullspace_unlearn.audit.case import Case, View
from nullspace_unlearn.audit.probes import AS_RETRAINED, Split, split
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    NAME_ONLY,
    NOT_FORGOTTEN,
    Answer,
    Finding,
    Question,
)
from nullspace_unlearn.evaluate.bootstrap import ends, resampled
from nullspace_unlearn.linalg import unit

FALSE_POSITIVES = 0.01
"""Share of the others that may be taken for forgotten ones, for the true positive rate."""

TOLD = 0.1
"""How far an AUC may exceed one half and still be said to tell nothing."""

_LEAST = 1e-6


def confidence(
    embeddings: Float[Tensor, "n dim"],
    text: Float[Tensor, "names dim"],
    listed: Bool[Tensor, " names"],
    scale: float,
) -> Float[Tensor, " n"]:
    """How sure a model is of its best name, `log(p / (1 - p))`, out of names that stay.

    The logit is what likelihood-ratio attacks look at (arXiv 2112.03570, section IV.C), since its
    values are near to normal ones. The forgotten name is not listed: what it tells itself is asked
    elsewhere, and here the question is whether its absence shows.

    Args:
        embeddings: `[n, dim]`.
        text: `[names, dim]` the classifier.
        listed: `[names]` the names that are listed, at least two.
        scale: What cosines are multiplied by before the softmax.

    Returns:
        `[n]` float64.
    """
    logits = scale * unit(embeddings.double()) @ unit(text[listed].double()).mT
    best, place = logits.max(-1, keepdim=True)
    others = logits.scatter(-1, place, -torch.inf).logsumexp(-1)
    return best[:, 0] - others


def likelihood_ratio(
    score: Float[Tensor, " n"],
    known: Float[Tensor, " k"],
    member: Bool[Tensor, " k"],
) -> Float[Tensor, " n"]:
    """How much likelier a score is under the normal distribution of members than of others.

    The distributions are of two populations of images, not of one image under many shadow models:
    a population attack in the words of arXiv 2403.01218, which is weaker than one a image.

    Args:
        score: `[n]` what is to be told.
        known: `[k]` scores of images that the attacker knows.
        member: `[k]` which of these are members; two of each kind at least.

    Returns:
        `[n]` log of the ratio (arXiv 2112.03570, equation 2).
    """

    def density(of: Tensor) -> Tensor:
        return torch.distributions.Normal(of.mean(), of.std().clamp(min=_LEAST)).log_prob(score)

    return density(known[member]) - density(known[~member])


def auc(
    score: Float[Tensor, " n"],
    positive: Bool[Tensor, " n"],
    weight: Float[Tensor, "*draws n"] | None = None,
) -> Float[Tensor, "*draws"]:
    """Share of pairs, one positive and one not, of which the positive scores higher; ties half.

    Args:
        score: `[n]`.
        positive: `[n]`.
        weight: `[*draws, n]` how often each is there; once if None.
    """
    weight = torch.ones(len(score), dtype=torch.float64) if weight is None else weight
    apart = score[positive][:, None] - score[~positive]
    wins = (apart > 0).double() + 0.5 * (apart == 0).double()
    mine, theirs = weight[..., positive], weight[..., ~positive]
    return ((mine @ wins) * theirs).sum(-1) / (mine.sum(-1) * theirs.sum(-1))


def true_positives(
    score: Float[Tensor, " n"], positive: Bool[Tensor, " n"], false: float = FALSE_POSITIVES
) -> Float[Tensor, ""]:
    """Share of the positives above the threshold that lets at most so many others pass.

    Args:
        score: `[n]`.
        positive: `[n]`.
        false: The share of the others that may pass.
    """
    others = score[~positive].sort(descending=True).values
    allowed = int(false * len(others))
    threshold = others[allowed] if allowed < len(others) else others.new_tensor(-torch.inf)
    return (score[positive] > threshold).double().mean()


def _attack(case: Case, view: View, parts: Split) -> tuple[Tensor, Tensor]:
    """Scores of the test images, and which of them are forgotten."""
    stays = ~case.mask.any(1)
    more = torch.ones(len(view.text) - len(stays), dtype=torch.bool)
    listed = torch.cat([stays, more])
    if int(listed.sum()) < 2:
        listed = torch.ones_like(listed)
    sure = confidence(view.embeddings, view.text, listed, view.scale)
    ratio = likelihood_ratio(sure[parts.tests], sure[parts.shots], case.gone[parts.shots])
    return ratio, case.gone[parts.tests]


def ask(case: Case) -> Answer:
    """Attack every model's confidences.

    Args:
        case: What is audited.
    """
    parts = split(case.mask, case.labels, case.domains, case.generator("membership"), each=4)
    gone = case.gone[parts.tests]
    if gone.all():
        return Answer.unmeasured(
            "Everything in these domains was forgotten, so no image is there to be told from."
        )
    areas: dict[str, float | None] = {"chance": 0.5}
    rates: dict[str, float | None] = {"chance": FALSE_POSITIVES}
    spread = None
    for name, view in case.views():
        ratio, positive = _attack(case, view, parts)
        area = float(auc(ratio, positive))
        areas[name] = area
        rates[name] = float(true_positives(ratio, positive))
        if name == "edited" and case.draws:
            samples = [auc(ratio, positive, w) for w in resampled(positive.long(), case.draws, 0)]
            low, high = ends(torch.cat(samples)).tolist()
            spread = low, high
    many = len(parts.tests)
    findings = (
        Finding("auc", "AUC of the likelihood ratio of confidences", "chance", areas, spread, many),
        Finding("tpr", "true positive rate at 1 % false positives", "chance", rates, None, many),
    )
    area, rate = float(areas["edited"] or 0.0), float(rates["edited"] or 0.0)
    said = f"Confidence tells forgotten images from others with an AUC of {area:.2f}, and finds "
    said += f"{rate:.2f} of them at 1 % false alarms"
    fresh = areas.get("retrained")
    if area <= 0.5 + TOLD:
        return Answer(FORGOTTEN, f"{said}: next to nothing.", findings)
    if fresh is not None and area <= fresh + AS_RETRAINED:
        return Answer(FORGOTTEN, f"{said}, as in the model that never saw them.", findings)
    by_name = case.against(case.edited).verdict in ("forgotten", "over-forgotten")
    return Answer(NAME_ONLY if by_name else NOT_FORGOTTEN, f"{said}.", findings)


MEMBERSHIP = Question(
    name="membership",
    title="Told by confidence alone",
    asks="Does the model's confidence give away which images it was made to forget?",
    paper="arXiv 2112.03570; arXiv 2403.01218",
    needs=frozenset({"features"}),
    quick=True,
    ask=ask,
)
