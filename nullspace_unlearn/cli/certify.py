"""`nsu certify`: recompute an output folder's certificates from its weights alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.proof import Proof

# Standard templates, and prompts that are encoded without being asked for.
_STANDARD, _FEW_PROMPTS = 80, 4000


@click.command()
@click.argument("folder")
@click.option("--pretrained", help="Where FOLDER is an image tower alone: the model with its text.")
@click.option(
    "--template", multiple=True, metavar="TEXT", help="Check these in place of the recipe's."
)
@click.option(
    "--classes", metavar="A,B,C|FILE", help="Names that stay; absent: those the recipe says."
)
@click.option(
    "--singly/--no-singly",
    default=None,
    help="Also try each of the 80 standard templates by itself; absent: where names are few.",
)
@options.device_options
@options.output_options
def certify(
    folder: str,
    pretrained: str | None,
    template: tuple[str, ...],
    classes: str | None,
    singly: bool | None,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove from the saved weights that what FOLDER forgot cannot win on any image.

    All that its history forgets everywhere is proven, whenever it was forgotten, for the whole list
    of names that stay and for the templates that are named. Of a list that lacks some of these, of
    a search by the name and of other templates it proves nothing: `nsu evaluate` measures them.
    Exits 1 where the proof fails.
    """
    from nullspace_unlearn.clip import read_folder
    from nullspace_unlearn.proof import prove

    read_folder(folder)  # which says it where it is no model folder
    clip = options.load_model(folder, pretrained, device, precision)
    kept = options.class_list(classes)
    proof = prove(clip, kept, template or None)
    alone = _singly(clip, kept, proof) if _affordable(singly, proof) else None
    if as_json:
        options.print_json(proof.to_json() | {"singly": alone})
    elif not quiet:
        for one in proof.proven:
            shares = ", ".join(f"{w:.2f} {n}" for n, w in list(one.weights.items())[:5])
            verdict = "holds" if one.holds else "FAILS"
            click.echo(f"{one.name}: {verdict}, violation {one.violation:.1e}; = {shares}")
        for means in dict.fromkeys(one.means for one in proof.proven):
            click.echo(f"That is: {means}.")
        click.echo(f"Assumed: {len(proof.kept)} names stay, as {proof.kept_from} says.")
        click.echo(_scope(proof))
        click.echo(_alone(alone, singly))
        if proof.left_out:
            click.echo(f"Left out, as forgotten or the same to it: {', '.join(proof.left_out)}.")
        if proof.uncovered:
            cells = "; ".join(proof.uncovered)
            click.echo(f"Not covered, since forgotten in some domains only: {cells}.")
    if not proof.holds:
        broken = [one for one in proof.proven if not one.holds]
        worst = max(broken, key=lambda one: one.violation)
        click.echo(
            f"nsu: the certificate fails for {worst.name!r}: violation {worst.violation:.1e}, "
            f"{worst.means}",
            err=True,
        )
        sys.exit(1)


def _affordable(asked: bool | None, proof: Proof) -> bool:
    """Whether each template is tried: as asked, else where that is few prompts."""
    prompts = _STANDARD * (len(proof.kept) + len(proof.proven))
    return prompts <= _FEW_PROMPTS if asked is None else asked


def _singly(clip: Clip, kept: Sequence[str] | None, proof: Proof) -> list[dict[str, Any]]:
    """Each standard template by itself that the model reads whole, the largest violation first."""
    from nullspace_unlearn.proof import prove
    from nullspace_unlearn.prototypes import (
        prompt_features,
        standard_templates,
        templates_that_fit,
    )
    from nullspace_unlearn.prototypes.text_cache import cached_text

    found = []
    names = (*proof.kept, *proof.left_out, *(one.name for one in proof.proven))
    # In memory: what a folder keeps of prompts is not believed here.
    with cached_text():
        templates = templates_that_fit(clip, names, standard_templates())
        prompt_features(clip, names, templates)  # all in one go; each proof finds its own
        for template in templates:
            one = prove(clip, kept, (template,))
            worst = max(one.proven, key=lambda row: row.violation)
            found.append(
                {
                    "template": template, "holds": one.holds, "class": worst.name,
                    "violation": worst.violation,
                }
            )  # fmt: skip
    return sorted(found, key=lambda row: -float(row["violation"]))


def _scope(proof: Proof) -> str:
    said = {text for one in proof.proven for text in one.templates}
    templates = ", ".join(map(repr, sorted(said)[:3])) + ", ..." * (len(said) > 3)
    return (
        f"What this says: on every image, in the list of these {len(proof.kept)} names and the "
        f"forgotten one, by the mean of {len(said)} templates ({templates}). It says nothing of "
        "lists that lack some of them, of a search by the name, or of other templates."
    )


def _alone(alone: list[dict[str, Any]] | None, asked: bool | None) -> str:
    if alone is None:
        why = "" if asked is False else ", since there are many names"
        return f"Templates singly: not tried{why}; --singly tries them."
    holds = sum(row["holds"] for row in alone)
    worst = ", ".join(f"{row['template']!r} ({row['violation']:.1e})" for row in alone[:3])
    return f"Templates singly: it holds for {holds} of {len(alone)}; the worst: {worst}."
