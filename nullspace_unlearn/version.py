"""The version, where every module can read it without a circle."""

__version__ = "0.1.0"
