"""Benchmarks: a recipe says what is compared on which images; each trial of it leaves one JSON."""
