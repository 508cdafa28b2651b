"""Load CLIP models, fold edits into the end of their towers, write model folders.

Only this package knows open_clip's attribute names.
"""

from nullspace_unlearn.clip.adapter import attach, save_adapter
from nullspace_unlearn.clip.export import TARGETS, export
from nullspace_unlearn.clip.folder import Saved, check_outputs, read_folder, revert
from nullspace_unlearn.clip.folding import describe, fold
from nullspace_unlearn.clip.layout import Layout
from nullspace_unlearn.clip.load import PRECISIONS, load
from nullspace_unlearn.clip.mlp import LastMlp, MlpFeatures, find_mlp
from nullspace_unlearn.clip.model import Clip
from nullspace_unlearn.clip.network import Change, encode
from nullspace_unlearn.clip.projection import Projection, find, headless
from nullspace_unlearn.clip.source import BUNDLED, Source
from nullspace_unlearn.clip.towers import FAMILIES, Family
from nullspace_unlearn.clip.value import ValueFeatures, ValueProjection, find_value
from nullspace_unlearn.clip.visual_prompts import VisualPrompts, new_prompts, with_prompts

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "PRECISIONS",
    "TARGETS",
    "Change",
    "Clip",
    "Family",
    "LastMlp",
    "Layout",
    "MlpFeatures",
    "Projection",
    "Saved",
    "Source",
    "ValueFeatures",
    "ValueProjection",
    "VisualPrompts",
    "attach",
    "check_outputs",
    "describe",
    "encode",
    "export",
    "find",
    "find_mlp",
    "find_value",
    "fold",
    "headless",
    "load",
    "new_prompts",
    "read_folder",
    "revert",
    "save_adapter",
    "with_prompts",
]
