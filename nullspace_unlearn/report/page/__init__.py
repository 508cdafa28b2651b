"""`nsu report`: what runs wrote, as one page that opens from disk, and its tables and plots."""

from __future__ import annotations

from nullspace_unlearn.report.page.write import write_page

__all__ = ["write_page"]
