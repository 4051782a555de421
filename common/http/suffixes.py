"""The suffixes of image files, for all who list files: sources, and clients that upload."""

SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".mpo", ".png",
        ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs", ".heic",
        ".heif", ".heics", ".heifs", ".hif",
    }
)  # fmt: skip


def ending_of(name: str) -> str:
    """The ending of a file's name in small letters, with its dot; "" if there is none.

    Unlike `os.path.splitext`, it takes a hidden file to be nothing but an ending.
    """
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""
