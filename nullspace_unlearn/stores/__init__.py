"""Embeddings that are stored: edited where they lie, without the model and without torch."""
