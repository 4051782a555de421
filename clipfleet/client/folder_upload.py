"""Lists folders of this machine, and divides their images into requests. Sends nothing.

The rules are those of the service's own source `folder`: the order of names, no hidden files, no
links to folders, and other files than images counted by suffix.
"""

import hashlib
import json
import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from clipfleet.client.arguments import items, text
from clipfleet.client.payloads import Part, StoredFile
from clipfleet.common.collection import LABEL_BYTES
from clipfleet.common.http.suffixes import SUFFIXES, ending_of
from clipfleet.common.http.uploads import MAX_ASKED, NAMED_SUFFIXES, KnownOut
from clipfleet.common.identity import (
    ID_BYTES,
    bytes_hash,
    has_same_bytes,
    id_problem,
    printable,
    text_problem,
)
from clipfleet.errors import ProblemError, invalid_argument

MAX_IMAGES = 500  # in one request
MAX_BYTES = 32_000_000  # of files in one request, unless one file alone has more
STREAMED_BYTES = 128_000_000  # a larger file is not read into memory, and is always sent
TOO_LARGE = 413
WHOLE_UPLOAD = "CLIPFLEET_LIMITS__OPEN_UPLOAD_"  # in the detail of a 413 about the whole upload

Folders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class LocalImage:
    """An image of this machine.

    Attributes:
        path: its path.
        id: its id in the collection.
        label: its label; "": none.
        problem: why it cannot be sent, when that is known from the listing.
    """

    path: str
    id: str
    label: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class Outgoing:
    """An image as a part of a request.

    Attributes:
        item: what the form says of it.
        file: its bytes, or a file that is read while it is sent; None when it is not sent.
        size: the bytes of the file.
    """

    item: dict[str, Any]
    file: bytes | StoredFile | None = None
    size: int = 0

    @property
    def sends(self) -> int:
        """The bytes of the file that are sent."""
        return 0 if self.file is None else self.size


@dataclass
class Sent:
    """How far an upload is.

    Attributes:
        images: images that were found.
        bytes: bytes of their files.
        done: images that were looked at.
        done_bytes: bytes of their files.
        sent: images that were sent by this call.
        had: images that the service had already.
        failed: images that could not be sent.
    """

    images: int = 0
    bytes: int = 0
    done: int = 0
    done_bytes: int = 0
    sent: int = 0
    had: int = 0
    failed: int = 0


@dataclass
class LocalFolders:
    """The images below folders of this machine, and single images.

    With one folder, ids are paths below it. With several folders or files, ids are paths below the
    folder that contains all of them. They have slashes on every system.

    Args:
        paths: the folders and files.
        recursive: include the folders in them.
        label_from_folder: the name of an image's folder becomes its label.
        label: the label of all of them otherwise.

    Attributes:
        left_out: other files, by suffix; complete once `images` was read to its end.

    Raises:
        InvalidRequest: there are no paths, or one is none.
        FileNotFoundError: one does not exist.
    """

    paths: Folders
    recursive: bool = True
    label_from_folder: bool = False
    label: str = ""
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        single = isinstance(self.paths, str | Path)
        listed = [self.paths] if single else items("folders", self.paths, "a path or several")
        paths = [text(f"folders.{n}", path) for n, path in enumerate(listed)]
        self._roots = [os.path.abspath(os.path.expanduser(path)) for path in paths]
        if not self._roots:
            message = "there are no folders to upload"
            raise invalid_argument("folders", message, is_sentence=True)
        for root in self._roots:
            os.stat(root)
        one_folder = len(self._roots) == 1 and os.path.isdir(self._roots[0])
        above = [os.path.dirname(root) for root in self._roots]
        self._base = self._roots[0] if one_folder else os.path.commonpath(above)

    @property
    def name(self) -> str:
        """The folders in words."""
        first, more = printable(self._roots[0]), len(self._roots) - 1
        return f"{first} and {more} more" if more else first

    def key(self, *options: str) -> str:
        """What an upload of the same folders on this machine has in common, with these options."""
        parts = [
            socket.gethostname(), *self._roots, str(self.recursive), str(self.label_from_folder),
            self.label, *options,
        ]  # fmt: skip
        raw = json.dumps(parts, ensure_ascii=True, default=str).encode()
        return hashlib.blake2b(raw, digest_size=16).hexdigest()

    def images(self) -> Iterator[LocalImage]:
        """The images in the order of their paths, each once. Resets `left_out`.

        Raises:
            OSError: one of the folders cannot be listed. A folder in it fails alone.
        """
        self.left_out.clear()
        seen: set[str] = set()
        for root in self._roots:
            for image in self._below(root):
                if len(self._roots) > 1:  # two of the paths may name the same file
                    if image.path in seen:
                        continue
                    seen.add(image.path)
                yield image

    def _below(self, root: str) -> Iterator[LocalImage]:
        if not os.path.isdir(root):
            yield self._image(root, os.path.dirname(root), None)
            return
        stack = [iter(self._entries(root))]
        while stack:
            for path, is_folder, is_link in stack[-1]:
                if not is_folder:
                    problem = self._link_problem(path, root) if is_link else None
                    yield self._image(path, os.path.dirname(path), problem)
                    continue
                try:
                    stack.append(iter(self._entries(path)))
                except OSError as error:
                    why = f"the folder cannot be read: {error.strerror or error}"
                    yield self._image(path, os.path.dirname(path), why)
                else:
                    break
            else:
                stack.pop()

    def _entries(self, folder: str) -> list[tuple[str, bool, bool]]:
        """(path, whether it is a folder, whether it is a link) of the images and folders in one."""
        rows: list[tuple[bytes, str, bool, bool]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if name.startswith(b"."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if self.recursive:
                        rows.append((name, entry.path, True, False))
                elif ending_of(entry.name) in SUFFIXES:
                    rows.append((name, entry.path, False, entry.is_symlink()))
                else:
                    self.left_out[ending_of(entry.name)] += 1
        return [row[1:] for row in sorted(rows)]

    @staticmethod
    def _link_problem(path: str, root: str) -> str | None:
        real, top = os.path.realpath(path), os.path.realpath(root)
        if real.startswith(top.rstrip(os.sep) + os.sep):
            return None
        return "the link leads outside the folder that is uploaded"

    def _image(self, path: str, folder: str, problem: str | None) -> LocalImage:
        name = printable(os.path.relpath(path, self._base)).replace(os.sep, "/")
        label = printable(os.path.basename(folder)) if self.label_from_folder else self.label
        if long := id_problem(name):
            mark = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
            name = f"{name.encode()[: ID_BYTES - 20].decode('utf-8', 'ignore')}…{mark}"
            problem = problem or long
        if wrong := text_problem("label", label, LABEL_BYTES, empty=True):
            label, problem = "", problem or wrong
        return LocalImage(path, name, label, problem)


class FolderUpload:
    """Divides the images of folders into requests, and counts them.

    Args:
        folders: the images.
        exif: whether fields of EXIF become metadata, for the content hash.
        skips: whether images that the collection has, and that have not changed, are not sent.

    Attributes:
        sent: how far the upload is.
        model: the model of the collection, for the content hash.

    Raises:
        InvalidRequest: there are no images.
        OSError: one of the folders cannot be listed.
    """

    def __init__(self, folders: LocalFolders, *, exif: bool, skips: bool) -> None:
        self._folders, self._exif, self._skips = folders, exif, skips
        self.model = ""
        self.sent = Sent()
        self._max_bytes, self._max_images = MAX_BYTES, MAX_IMAGES
        for image in folders.images():
            self.sent.images += 1
            self.sent.bytes += _size(image)
        if not self.sent.images:
            suffixes = " ".join(sorted(SUFFIXES))
            message = f"no images in {folders.name} (looked for {suffixes})"
            raise invalid_argument("folders", message, is_sentence=True)

    def pages(self) -> Iterator[list[LocalImage]]:
        """The images, as many at once as the service is asked about."""
        images = self._folders.images()
        while page := list(islice(images, MAX_ASKED)):
            yield page

    @property
    def left_out(self) -> dict[str, int]:
        """Files that are no images, by suffix; those of rare suffixes are counted together."""
        common = self._folders.left_out.most_common(NAMED_SUFFIXES - 1)
        rest = self._folders.left_out.total() - sum(count for _, count in common)
        return {**dict(common), **({"*": rest} if rest else {})}

    def batches(
        self, page: Sequence[LocalImage], known: KnownOut | None
    ) -> Iterator[list[Outgoing]]:
        """The requests for a page. Files are read as the requests are taken.

        Args:
            page: the images.
            known: what the service knows of them, in their order; None: nothing.
        """
        batch: list[Outgoing] = []
        size = 0
        for number, image in enumerate(page):
            received = known.received[number] if known else None
            stored = known.stored[number] if known and self._skips else None
            outgoing = self._outgoing(image, received, stored)
            if outgoing is None:
                continue
            full = len(batch) >= self._max_images or size + outgoing.sends > self._max_bytes
            if batch and full:
                yield batch
                batch, size = [], 0
            batch.append(outgoing)
            size += outgoing.sends
        if batch:
            yield batch

    def count(self, batch: Sequence[Outgoing]) -> None:
        """Count a request that was carried out."""
        for outgoing in batch:
            self._looked_at(outgoing.size)
            self.sent.sent += outgoing.file is not None
            self.sent.had += "content_hash" in outgoing.item
            self.sent.failed += "problem" in outgoing.item

    def smaller(self, batch: list[Outgoing], error: ProblemError) -> list[list[Outgoing]]:
        """What to send in place of a request that was too large, and so for all after it.

        Args:
            batch: the images of the request.
            error: why it was refused. It is raised when smaller requests would not help.
        """
        if error.status != TOO_LARGE or WHOLE_UPLOAD in error.detail:
            raise error
        if len(batch) == 1:
            (image,) = batch
            if image.file is None:
                raise error
            reason = " ".join(f"the service refused a request with it: {error.detail}".split())
            item = {"id": image.item["id"], "label": image.item["label"], "problem": reason[:500]}
            return [[Outgoing(item, None, image.size)]]
        middle = len(batch) // 2
        self._max_images = min(self._max_images, middle)
        self._max_bytes = min(self._max_bytes, max(1, sum(image.sends for image in batch) // 2))
        return [batch[middle:], batch[:middle]]

    def _outgoing(
        self, image: LocalImage, received: str | None, stored: str | None
    ) -> Outgoing | None:
        """The image as a part of a request; None when the upload has got it."""
        item: dict[str, Any] = {"id": image.id, "label": image.label}
        if image.problem:
            return Outgoing({**item, "problem": image.problem})
        try:
            size = _regular_size(image.path)
            if size > STREAMED_BYTES:
                return Outgoing(item, StoredFile(Path(image.path)), size)
            data = Path(image.path).read_bytes()
        except OSError as error:
            return Outgoing({**item, "problem": f"the file cannot be read: {_reason(error)}"})
        if received and received == hashlib.blake2b(data, digest_size=16).hexdigest():
            self._looked_at(len(data))
            self.sent.had += 1
            return None
        if stored and has_same_bytes(stored, bytes_hash(data, self.model, exif=self._exif)):
            return Outgoing({**item, "content_hash": stored}, None, len(data))
        return Outgoing(item, data, len(data))

    def _looked_at(self, size: int) -> None:
        self.sent.done += 1
        self.sent.done_bytes += size


def form_parts(batch: Sequence[Outgoing]) -> tuple[dict[str, str], list[Part]]:
    """The fields and files of the form of a request."""
    described = json.dumps([outgoing.item for outgoing in batch])
    kind = "application/octet-stream"
    files: list[Part] = [
        ("files", ("image", cast("BinaryIO", outgoing.file), kind))
        for outgoing in batch
        if outgoing.file is not None
    ]
    return {"items": described}, files


def _size(image: LocalImage) -> int:
    try:
        return 0 if image.problem else os.stat(image.path).st_size
    except OSError:
        return 0


def _regular_size(path: str) -> int:
    """The size of a file. OSError for anything but a file: a pipe would never end."""
    seen = os.stat(path)
    if not stat.S_ISREG(seen.st_mode):
        raise OSError("it is not a file")
    return seen.st_size


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
