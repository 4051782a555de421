"""Reads the original files of images for an export, from the service."""

import re
import time
from collections.abc import Callable
from types import TracebackType

import httpx

from clipfleet.client import _requests
from clipfleet.client._config import OUTAGE_S
from clipfleet.client._retries import retry_delay_s
from clipfleet.client.exports.spool import RowDict
from clipfleet.common.http import uris
from clipfleet.errors import ProblemError

MAX_BYTES = 100_000_000  # of one image
TIMEOUT_S = 30.0  # of a step of a request to another server
LEFT_OUT = (403, 404, 410)  # the service cannot give this image; other answers stop the export

# How image files begin, and the ending that webdataset readers know for each.
_KINDS = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"GIF8[79]a"), "gif"),
    (re.compile(rb"BM"), "bmp"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "tif"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "avif"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "heic"),
)
_ARCHIVED = re.compile(r"\.(tar|tgz|txz|tbz2?|zip|tar\.[a-z0-9]+)#", re.IGNORECASE)


def has_own_address(uri: str) -> bool:
    """Whether a URI names a file: that of an upload, of an own vector or in an archive does not."""
    return (uri.startswith("/") or bool(uris.scheme(uri))) and not _ARCHIVED.search(uri)


class NotReadable(Exception):
    """The image of a row cannot be read; the text is the reason.

    Attributes:
        kind: the reason without names, by which images are counted.
    """

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind or reason


class Originals:
    """Reads images. Threads may share it.

    Args:
        service: sends requests to the service.
        collection: the collection of the images.
    """

    def __init__(self, service: httpx.Client, collection: str) -> None:
        self._service, self._collection = service, collection
        self._web = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)

    def __enter__(self) -> "Originals":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._service.close()
        self._web.close()

    def read(self, row: RowDict) -> tuple[bytes, str]:
        """The image of a row.

        Returns:
            Its bytes, and the ending for its name, such as "jpg".

        Raises:
            NotReadable: the service cannot give it, it is no image, or it has another size than
                when it was indexed.
            ProblemError, Unreachable: the service is away, or refuses the request.
        """
        data = self._bytes(row)
        if row["bytes"] and len(data) != row["bytes"]:
            raise NotReadable("the file has another size than when it was indexed")
        ending = next((ending for start, ending in _KINDS if start.match(data)), None)
        if ending is None:
            raise NotReadable("the file is no image of a known format")
        return data, ending

    def _bytes(self, row: RowDict) -> bytes:
        request = _requests.original(self._collection, row["id"], row["namespace"])
        outcome = self._response_of(
            lambda: self._service.get(request.path, params=request.params, follow_redirects=False)
        )
        if isinstance(outcome, httpx.Response) and outcome.is_redirect:
            return self._download(outcome.headers["location"])
        try:
            return request.result(outcome, str(self._service.base_url))
        except ProblemError as error:
            if error.status not in LEFT_OUT or "collection" in error.problem:
                raise
            kind = f"{error.title[:1].lower()}{error.title[1:]}"
            raise NotReadable(error.detail or kind, kind) from error

    def _response_of(
        self, ask: Callable[[], httpx.Response]
    ) -> httpx.Response | httpx.RequestError:
        """What the service answers; it may be away for OUTAGE_S seconds."""
        until, attempt = time.monotonic() + OUTAGE_S, 0
        while True:
            try:
                outcome: httpx.Response | httpx.RequestError = ask()
            except httpx.RequestError as error:
                outcome = error
            delay_s = retry_delay_s(outcome, attempt, repeatable=True)
            if delay_s is None or time.monotonic() + delay_s > until:
                return outcome
            time.sleep(delay_s)
            attempt += 1

    def _download(self, url: str) -> bytes:
        try:
            with self._web.stream("GET", url) as response:
                if response.status_code != 200:
                    raise NotReadable(f"its server answers {response.status_code}")
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise NotReadable(f"it has more than {MAX_BYTES // 1_000_000} MB")
                return bytes(data)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotReadable(f"its server does not answer ({type(error).__name__})") from error
