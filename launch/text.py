"""Numbers and tables as people read them."""

import sys
from typing import Any

WIDTH = 160
"""Columns of a table that goes to no terminal."""


def console() -> Any:
    """Prints tables: as wide as the terminal, or wide enough for a file's reader."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH)


def size_text(size: float) -> str:
    """Bytes: `1536` as 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
