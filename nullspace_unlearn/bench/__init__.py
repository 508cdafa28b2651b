"""Benchmarks: a recipe says what is compared on which images; each cell of it leaves one JSON."""
