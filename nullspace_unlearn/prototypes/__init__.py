"""Prototypes: vectors that stand for classes and cells, from prompts, pictures or images."""

from nullspace_unlearn.prototypes.pixels import Pictures, Synthesis, synthesise
from nullspace_unlearn.prototypes.text import (
    cell_prototypes,
    class_prototypes,
    names_that_fit,
    prompt_features,
    templates_that_fit,
)
from nullspace_unlearn.prototypes.visual import (
    Visual,
    draw,
    from_batches,
    from_images,
    from_pictures,
    from_text,
)
from nullspace_unlearn.prototypes.vocabulary import (
    DOMAIN_WORDS,
    imagenet_names,
    near_synonyms,
    standard_templates,
)
from nullspace_unlearn.prototypes.wording import moved_by_wording, wordings

__all__ = [
    "DOMAIN_WORDS",
    "Synthesis",
    "Pictures",
    "Visual",
    "cell_prototypes",
    "class_prototypes",
    "draw",
    "from_batches",
    "from_images",
    "from_pictures",
    "from_text",
    "imagenet_names",
    "moved_by_wording",
    "names_that_fit",
    "near_synonyms",
    "prompt_features",
    "standard_templates",
    "synthesise",
    "templates_that_fit",
    "wordings",
]
