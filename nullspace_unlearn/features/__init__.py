"""Features of labelled images: what they are (`features`), computed (`embed`), into a file."""

from nullspace_unlearn.features.features import Features, read_features

__all__ = ["Features", "read_features"]
