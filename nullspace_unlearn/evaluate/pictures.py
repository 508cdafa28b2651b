"""The bundled pictures as features: what `nsu-mini` is measured on where no data is given."""

from __future__ import annotations

import torch
from tqdm import tqdm

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.features import Features, made_with

# Seeds of training, of the model card and of the tests all lie below.
_FIRST_SEED = 10_000_000


def embed_pictures(
    clip: Clip,
    each: int = 20,
    seed: int = 0,
    batch_size: int = 64,
    quiet: bool = False,
    hidden: bool = False,
) -> Features:
    """Draw and embed the bundled pictures, on seeds that nothing was trained or chosen on.

    Args:
        clip: The model.
        each: Pictures a cell.
        seed: Another seed draws other pictures.
        batch_size: Pictures per forward pass.
        quiet: Whether to leave out the progress bar on stderr.
        hidden: Whether to keep the hidden features too.

    Returns:
        Features of `classes * domains * each` pictures, without text.
    """
    seeds = range(_FIRST_SEED + seed * each, _FIRST_SEED + (seed + 1) * each)
    cells = [(c, d) for c in range(len(mini.CLASSES)) for d in range(len(mini.DOMAINS))]
    jobs = [(c, d, s) for c, d in cells for s in seeds]
    parts, hiddens = [], []
    with tqdm(total=len(jobs), unit="picture", disable=quiet, desc="embedding") as bar:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            drawn = [
                clip.preprocess(mini.render(mini.CLASSES[c], mini.DOMAINS[d], s))
                for c, d, s in batch
            ]
            if hidden:
                h, z = clip.encode_both(torch.stack(drawn))
                hiddens.append(h.cpu())
            else:
                z = clip.encode_image(torch.stack(drawn))
            parts.append(z.cpu())
            bar.update(len(batch))
    return Features(
        embeddings=torch.cat(parts),
        labels=torch.tensor([c for c, _, _ in jobs]),
        class_names=mini.CLASSES,
        hidden=torch.cat(hiddens) if hidden else None,
        domains=torch.tensor([d for _, d, _ in jobs]),
        domain_names=mini.DOMAINS,
        provenance={
            **made_with(clip),
            "images": f"bundled pictures, seeds {seeds.start} to {seeds.stop - 1}",
            "skipped": [],
        },
    )
