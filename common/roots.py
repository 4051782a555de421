"""Folder jobs stay below the configured roots, whatever `..` and symbolic links say."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipfleet.common.errors import Forbidden


def require_below(path: str, roots: Sequence[Path]) -> str:
    """The path made absolute and normal, by its letters alone (nothing is read)."""
    normal = os.path.normpath(path)
    if not os.path.isabs(normal):
        raise Forbidden(f"{path[:200]!r} is no absolute path")
    if not any(_contains(os.path.normpath(root), normal) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none is configured"
        raise Forbidden(
            f"{path[:200]!r} lies outside the folders that may be indexed ({allowed}); "
            "CLIPFLEET_SOURCE_ROOTS lists them"
        )
    return normal


def really_below(path: str, roots: Sequence[Path]) -> bool:
    """The same question with every symbolic link followed."""
    real = os.path.realpath(path)
    return any(_contains(os.path.realpath(root), real) for root in roots)


def _contains(root: str, path: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
