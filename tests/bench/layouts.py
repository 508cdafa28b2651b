"""Names that the tests of benchmarks share."""

CLASSES, DOMAINS = ("car", "dog", "tree"), ("photo", "sketch")
