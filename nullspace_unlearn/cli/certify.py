"""`nsu certify`: recompute an output folder's certificate from its weights alone."""

from __future__ import annotations

import sys
from typing import Any

import click

from nullspace_unlearn.cli import options


@click.command()
@click.argument("folder")
@click.option(
    "--template", multiple=True, metavar="TEXT", help="Check these in place of the recipe's."
)
@options.device_options
@options.output_options
def certify(
    folder: str,
    template: tuple[str, ...],
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove from the saved weights that what FOLDER forgot cannot win on any image.

    Exits 1 where the proof fails.
    """
    from nullspace_unlearn import unlearn
    from nullspace_unlearn.clip import read_folder
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.words import Words

    recipe = _recipe(read_folder(folder).recipe, folder)
    forget, kept = Forget(**recipe["request"]), recipe["kept"]
    if forget.paradigm != "global":
        raise ValueError(
            f"{folder!r} forgets in some domains only; a certificate covers every image, so only "
            "classes forgotten everywhere have one"
        )
    templates = Words(class_templates=template or recipe["templates"]["class"]).class_templates
    clip = options.load_model(folder, None, device, precision)
    proof = unlearn.certify(clip, forget.names, kept, templates)
    rows: list[dict[str, Any]] = [
        {
            "class": name,
            "holds": bool(holds),
            "violation": float(violation),
            "weights": {
                kept[i]: float(w)
                for i, w in sorted(zip(index, weight, strict=True), key=lambda pair: -pair[1])
                if w > 0
            },
        }
        for name, holds, violation, index, weight in zip(
            forget.names,
            proof.holds.tolist(),
            proof.violation.tolist(),
            proof.index.tolist(),
            proof.weight.tolist(),
            strict=True,
        )
    ]
    holds = bool(proof.holds.all())
    if as_json:
        options.print_json(
            {
                "holds": holds,
                "largest_violation": float(proof.violation.max()),
                "templates": list(templates),
                "certificates": rows,
            }
        )
    elif not quiet:
        for row in rows:
            shares = ", ".join(f"{w:.2f} {n}" for n, w in list(row["weights"].items())[:5])
            verdict = "holds" if row["holds"] else "FAILS"
            click.echo(f"{row['class']}: {verdict}, violation {row['violation']:.1e}; = {shares}")
    if not holds:
        worst = max(rows, key=lambda row: float(row["violation"]))
        click.echo(
            f"nsu: the certificate fails for {worst['class']!r}: violation "
            f"{worst['violation']:.1e}",
            err=True,
        )
        sys.exit(1)


def _recipe(recipe: Any, folder: str) -> dict[str, Any]:
    """The request the folder was made from, trusting nothing in it."""
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.words import Words

    try:
        made = dict(recipe["edits"][-1])
        Forget(**made["request"])
        Words(classes=made["kept"], class_templates=made["templates"]["class"])
        return made
    except (TypeError, KeyError, IndexError, ValueError, AttributeError):
        raise ValueError(
            f"{folder!r} does not say what was forgotten: it holds no recipe.yaml of nsu erase"
        ) from None
