"""Load CLIP models, fold edits into their final projections, write model folders.

Only this package knows open_clip's attribute names.
"""

from nullspace_unlearn.clip.checkpoint import Saved, read_folder, revert
from nullspace_unlearn.clip.families import FAMILIES, Family
from nullspace_unlearn.clip.load import PRECISIONS, load
from nullspace_unlearn.clip.model import BUNDLED, Clip, Source
from nullspace_unlearn.clip.projection import (
    Change,
    Projection,
    describe,
    encode,
    find,
    fold,
    headless,
)

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "PRECISIONS",
    "Change",
    "Clip",
    "Family",
    "Projection",
    "Saved",
    "Source",
    "describe",
    "encode",
    "find",
    "fold",
    "headless",
    "load",
    "read_folder",
    "revert",
]
