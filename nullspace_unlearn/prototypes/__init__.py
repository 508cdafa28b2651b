"""Prototypes: unit vectors that stand for classes and cells."""

from nullspace_unlearn.prototypes.text import cell_prototypes, class_prototypes, prompt_features
from nullspace_unlearn.prototypes.vocabulary import DOMAIN_WORDS, imagenet_names, near_synonyms

__all__ = [
    "DOMAIN_WORDS",
    "cell_prototypes",
    "class_prototypes",
    "imagenet_names",
    "near_synonyms",
    "prompt_features",
]
