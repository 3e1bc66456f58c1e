"""Numbers as people read them."""


def size_text(size: float) -> str:
    """Bytes: `1536` as 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
