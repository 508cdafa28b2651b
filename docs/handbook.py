"""What mkdocs is told beyond mkdocs.yml: tables of benchmarks/ and notebooks are pages too."""

from __future__ import annotations

from pathlib import Path

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NOTEBOOKS = Path(__file__).parent / "notebooks"
_README = "benchmarks-readme.md"


def on_files(files: Files, config: object) -> Files:
    """Add the tables, how to make them, and the notebooks as pages below docs/."""
    files.append(File.generated(config, _README, abs_src_path=str(BENCHMARKS / "README.md")))
    for table in sorted((BENCHMARKS / "results").glob("*.md")):
        files.append(File.generated(config, f"tables/{table.name}", abs_src_path=str(table)))
    for notebook in sorted(NOTEBOOKS.glob("*.ipynb")):
        named = {"unique_key": notebook.stem}
        page, made = MarkdownExporter().from_filename(str(notebook), resources=named)
        # Tables without a class are the theme's: in its colours, and scrolled where they are wide.
        page = page.replace('<table border="1" class="dataframe">', "<table>")
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
        for name, data in made["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
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
