"""What mkdocs is told beyond mkdocs.yml: the tables of benchmarks/ are pages too."""

from __future__ import annotations

from pathlib import Path

from mkdocs.structure.files import File, Files

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_README = "benchmarks-readme.md"


def on_files(files: Files, config: object) -> Files:
    """Add the tables, and how to make them, as pages below docs/."""
    files.append(File.generated(config, _README, abs_src_path=str(BENCHMARKS / "README.md")))
    for table in sorted((BENCHMARKS / "results").glob("*.md")):
        files.append(File.generated(config, f"tables/{table.name}", abs_src_path=str(table)))
    return files


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Point links that are right in the repository at the handbook's own pages."""
    uri = page.file.src_uri
    if uri == _README:
        return markdown.replace("](results/", "](tables/").replace("](../docs/", "](")
    if uri.startswith("tables/"):
        return markdown.replace("](../../docs/", "](../")
    markdown = markdown.replace("](../benchmarks/results/", "](tables/")
    return markdown.replace("](../benchmarks/README.md", f"]({_README}")
