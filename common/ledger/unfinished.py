"""The port of unfinished uploads: those that were begun and have not become a job.

An upload is recorded before its first byte is stored, so that the files of a gateway that was
killed can be found. The blob store is not searched for them: it may be a bucket with other data.

An open upload takes files in several requests, and is recorded with what it has got so far.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import redis
from pydantic import BaseModel, ConfigDict

from clipfleet.common.errors import Conflict, NotFound, TooLarge, Unavailable
from clipfleet.common.redis.client import redis_time, translating_redis_errors
from clipfleet.common.shares import may_take
from clipfleet.common.versions import parse_versioned

ROOT = "clipfleet:uploads:"
UNFINISHED, OPEN, RESUMABLE = ROOT + "unfinished", ROOT + "open", ROOT + "resumable"
SCRIPT = (Path(__file__).parent / "uploads.lua").read_text()


class OpenUpload(BaseModel):
    """An upload that takes files in several requests until its job starts.

    Attributes:
        id: the id of the job that it will become.
        collection: the name of the collection.
        generation: the generation of the collection.
        model: the model of the collection.
        namespace: the namespace of the images.
        on_existing: as in a job.
        exif: as in a job.
        caller: the name of the API key that opened it; "": none.
        key: the text by which its caller finds it again; "": none.
        created_at: unix seconds.
    """

    model_config = ConfigDict(frozen=True)

    v: Literal[1] = 1
    id: str
    collection: str
    generation: str
    model: str
    namespace: str
    on_existing: Literal["skip", "replace"] = "skip"
    exif: bool = False
    caller: str = ""
    key: str = ""
    created_at: float

    @property
    def resumes(self) -> str:
        """What another request must have in common to get this upload again."""
        parts = (self.caller, self.collection, self.generation, self.key)
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def require_same(self, other: "OpenUpload") -> None:
        """Raise Conflict when the other upload has other options."""
        for name in ("namespace", "on_existing", "exif"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise Conflict(
                    f"the open upload with this key has {name} {mine!r}, not {theirs!r}; "
                    "use another key",
                    upload=self.id,
                )


@dataclass(frozen=True)
class Received:
    """What an open upload has got.

    Attributes:
        images: the number of images.
        bytes: the bytes of their files.
        resent: whether an image came more than once, with other content.
    """

    images: int = 0
    bytes: int = 0
    resent: bool = False


@dataclass(frozen=True)
class UploadRoom:
    """The limits on open uploads.

    Attributes:
        uploads: open uploads of all callers.
        images: images of one of them.
        bytes: bytes of one of them.
    """

    uploads: int
    images: int
    bytes: int

    def require_slot(self, open_: Sequence[str], caller: str) -> None:
        """Check whether the caller may open another upload.

        Args:
            open_: the callers of the open uploads.
            caller: the caller; "": none, which need not share.

        Raises:
            TooManyUploads: all are taken, or the rest is for other callers.
        """
        of_caller = sum(name == caller for name in open_) if caller else 0
        if not may_take(of_caller, self.uploads - len(open_)):
            raise TooManyUploads(
                f"{len(open_)} uploads are open"
                + (f", {of_caller} of them of this key" if caller else "")
                + f"; the limit is {self.uploads} (CLIPFLEET_LIMITS__OPEN_UPLOADS). Finish or "
                "delete one; those that get nothing for a day are deleted",
                retry_after_s=60,
            )

    def refusal(self, what: int, number: int) -> Exception:
        """The error for a part that does not fit, by the answer of `uploads.lua`."""
        if what == 2:
            return TooLarge(
                f"the upload would have {number} images; the limit is {self.images} "
                "(CLIPFLEET_LIMITS__OPEN_UPLOAD_IMAGES)"
            )
        return TooLarge(
            f"the upload would have {number} bytes; the limit is {self.bytes} "
            "(CLIPFLEET_LIMITS__OPEN_UPLOAD_BYTES)"
        )


class TooManyUploads(Unavailable):
    """The service, or one API key, has as many open uploads as it may have."""

    slug = "too-many-uploads"
    title = "Too many uploads are open"


def unknown_upload(upload_id: str) -> NotFound:
    """The error for an id without an open upload."""
    return NotFound(
        f"there is no open upload {upload_id[:80]!r}: it was never opened, has become a job, or "
        "got nothing for a day; open another one",
        upload=upload_id[:80],
    )


class Unfinished(Protocol):
    """The unfinished uploads, by the id of the job that they shall become.

    Every call raises Unavailable when Redis is away.
    """

    def begin(self, job_id: str) -> None:
        """Record that an upload begins, or goes on, with the current time.

        Args:
            job_id: the id of the job that it shall become.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def end(self, job_id: str) -> None:
        """Delete the record: the upload has become a job, or its files are deleted.

        Args:
            job_id: the id given to `begin`. An id without a record is no error.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def older(self, seconds: float, limit: int) -> list[str]:
        """List uploads that began, or went on, at least `seconds` ago and have no end.

        Args:
            seconds: the age of an upload at least.
            limit: the number of ids to return at most.

        Returns:
            The ids of their jobs, the oldest upload first.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def open(self, upload: OpenUpload, room: UploadRoom) -> OpenUpload:
        """Open an upload, or find the one that its caller opened with the same key.

        Args:
            upload: the upload.
            room: the limit on open uploads.

        Returns:
            The upload that is open.

        Raises:
            Conflict: the open upload with this key has other options.
            TooManyUploads: there is no room for another one.
            Unavailable: Redis is away.
        """
        ...

    def find(self, upload_id: str) -> OpenUpload:
        """Read an open upload.

        Args:
            upload_id: its id.

        Raises:
            NotFound: there is no such upload.
            OtherVersion: another release wrote it.
            Unavailable: Redis is away.
        """
        ...

    def received(self, upload_id: str) -> Received:
        """What an open upload has got so far; nothing if there is no such upload.

        Args:
            upload_id: its id.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def parts(self, upload_id: str) -> list[str]:
        """The names of the parts of an open upload, in the order of their arrival.

        Args:
            upload_id: its id.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def digests(self, upload_id: str, keys: Sequence[str]) -> list[str]:
        """The digests of images that an open upload has got.

        Args:
            upload_id: its id.
            keys: the primary keys of the images.

        Returns:
            The digest given to `add` for each key; "" for an image that it has not got.

        Raises:
            Unavailable: Redis is away.
        """
        ...

    def add(
        self, upload_id: str, part: str, digests: Mapping[str, str], size: int, room: UploadRoom
    ) -> None:
        """Add a part to an open upload, in one step.

        Args:
            upload_id: its id.
            part: the name of the part.
            digests: what identifies the content of each image, by primary key.
            size: the bytes of the files.
            room: the limits on the upload as a whole.

        Raises:
            NotFound: there is no such upload, or it takes no more files.
            TooLarge: the upload would have too many images or bytes.
            Unavailable: Redis is away.
        """
        ...

    def close(self, upload_id: str) -> None:
        """Take no more files.

        Args:
            upload_id: the id of an open upload. One that does not exist is no error.

        Raises:
            Unavailable: Redis is away.
        """
        ...


@dataclass
class _Entry:
    upload: OpenUpload
    digests: dict[str, str] = field(default_factory=dict)
    received: Received = Received()
    parts: list[str] = field(default_factory=list)
    closed: bool = False


class MemoryUnfinished:
    """Unfinished uploads in memory, for tests."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._begun: dict[str, float] = {}
        self._open: dict[str, _Entry] = {}

    def begin(self, job_id: str) -> None:
        self._begun[job_id] = self._clock()

    def end(self, job_id: str) -> None:
        self._begun.pop(job_id, None)
        self._open.pop(job_id, None)

    def older(self, seconds: float, limit: int) -> list[str]:
        last = self._clock() - seconds
        return [job_id for job_id, begun in list(self._begun.items()) if begun <= last][:limit]

    def open(self, upload: OpenUpload, room: UploadRoom) -> OpenUpload:
        with self._lock:
            entries = [entry for entry in self._open.values() if not entry.closed]
            for entry in entries if upload.key else ():
                if entry.upload.resumes == upload.resumes:
                    entry.upload.require_same(upload)
                    self.begin(entry.upload.id)
                    return entry.upload
            room.require_slot([entry.upload.caller for entry in self._open.values()], upload.caller)
            self.begin(upload.id)
            self._open[upload.id] = _Entry(upload)
            return upload

    def find(self, upload_id: str) -> OpenUpload:
        if upload_id not in self._open:
            raise unknown_upload(upload_id)
        return self._open[upload_id].upload

    def received(self, upload_id: str) -> Received:
        entry = self._open.get(upload_id)
        return entry.received if entry else Received()

    def parts(self, upload_id: str) -> list[str]:
        entry = self._open.get(upload_id)
        return list(entry.parts) if entry else []

    def digests(self, upload_id: str, keys: Sequence[str]) -> list[str]:
        entry = self._open.get(upload_id)
        return [entry.digests.get(key, "") if entry else "" for key in keys]

    def add(
        self, upload_id: str, part: str, digests: Mapping[str, str], size: int, room: UploadRoom
    ) -> None:
        with self._lock:
            entry = self._open.get(upload_id)
            if entry is None or entry.closed:
                raise unknown_upload(upload_id)
            old, images = entry.received, len({*entry.digests, *digests})
            if images > room.images:
                raise room.refusal(2, images)
            if old.bytes + size > room.bytes:
                raise room.refusal(3, old.bytes + size)
            resent = old.resent or any(key in entry.digests for key in digests)
            entry.digests.update(digests)
            entry.parts.append(part)
            entry.received = Received(images, old.bytes + size, resent)

    def close(self, upload_id: str) -> None:
        if upload_id in self._open:
            self._open[upload_id].closed = True


class RedisUnfinished:
    """Unfinished uploads in Redis.

    Args:
        clock: returns unix seconds, for tests; without it, Redis' clock is used.
    """

    def __init__(self, client: "redis.Redis", clock: Callable[[], float] | None = None) -> None:
        self._redis = client
        self._clock = clock or (lambda: redis_time(client))
        self._add = client.register_script(SCRIPT)

    def begin(self, job_id: str) -> None:
        now = self._clock()
        with translating_redis_errors():
            self._redis.zadd(UNFINISHED, {job_id: now})

    def end(self, job_id: str) -> None:
        with translating_redis_errors():
            raw: Any = self._redis.hget(_record(job_id), "upload")
            pipe = self._redis.pipeline()
            if raw is not None:
                self._forget_key(pipe, job_id, raw)
            pipe.zrem(UNFINISHED, job_id)
            pipe.hdel(OPEN, job_id)
            pipe.unlink(*_keys(job_id))
            pipe.execute()

    def _forget_key(self, pipe: Any, upload_id: str, raw: bytes) -> None:
        resumes = OpenUpload.model_validate_json(raw).resumes
        if self._redis.hget(RESUMABLE, resumes) == upload_id.encode():
            pipe.hdel(RESUMABLE, resumes)

    def older(self, seconds: float, limit: int) -> list[str]:
        last = self._clock() - seconds
        with translating_redis_errors():
            job_ids: Any = self._redis.zrangebyscore(UNFINISHED, "-inf", last, start=0, num=limit)
        return [job_id.decode() for job_id in job_ids]

    def open(self, upload: OpenUpload, room: UploadRoom) -> OpenUpload:
        with translating_redis_errors():
            before: Any = self._redis.hget(RESUMABLE, upload.resumes) if upload.key else None
            if before and (existing := self._open_one(before.decode())):
                existing.require_same(upload)
                self.begin(existing.id)
                return existing
            callers: Any = self._redis.hvals(OPEN)
            room.require_slot([name.decode() for name in callers], upload.caller)
            self.begin(upload.id)
            pipe = self._redis.pipeline()
            pipe.hset(_record(upload.id), "upload", upload.model_dump_json())
            pipe.hset(OPEN, upload.id, upload.caller)
            if upload.key:
                pipe.hset(RESUMABLE, upload.resumes, upload.id)
            pipe.execute()
        return upload

    def _open_one(self, upload_id: str) -> OpenUpload | None:
        raw, closed = self._redis.hmget(_record(upload_id), "upload", "closed")
        if raw is None or closed:
            return None
        return parse_versioned(OpenUpload, raw, "upload")

    def find(self, upload_id: str) -> OpenUpload:
        with translating_redis_errors():
            raw: Any = self._redis.hget(_record(upload_id), "upload")
        if raw is None:
            raise unknown_upload(upload_id)
        return parse_versioned(OpenUpload, raw, "upload")

    def received(self, upload_id: str) -> Received:
        record, _, digests = _keys(upload_id)
        with translating_redis_errors():
            pipe = self._redis.pipeline()
            pipe.hmget(record, "bytes", "resent")
            pipe.hlen(digests)
            (size, resent), images = pipe.execute()
        return Received(images, int(size or 0), bool(resent))

    def parts(self, upload_id: str) -> list[str]:
        with translating_redis_errors():
            names: Any = self._redis.lrange(_keys(upload_id)[1], 0, -1)
        return [name.decode() for name in names]

    def digests(self, upload_id: str, keys: Sequence[str]) -> list[str]:
        if not keys:
            return []
        with translating_redis_errors():
            rows: Any = self._redis.hmget(_keys(upload_id)[2], list(map(bytes.fromhex, keys)))
        return [digest.hex() if digest else "" for digest in rows]

    def add(
        self, upload_id: str, part: str, digests: Mapping[str, str], size: int, room: UploadRoom
    ) -> None:
        pairs = [
            bytes.fromhex(text) for pair in digests.items() for text in pair
        ]  # half the memory of text
        with translating_redis_errors():
            what, number = self._add(
                keys=_keys(upload_id), args=[part, size, room.images, room.bytes, *pairs]
            )
        if what == 1:
            raise unknown_upload(upload_id)
        if what:
            raise room.refusal(what, number)

    def close(self, upload_id: str) -> None:
        record = _record(upload_id)
        with translating_redis_errors():
            if self._redis.exists(record):
                self._redis.hset(record, "closed", "1")


def _record(upload_id: str) -> str:
    return f"clipfleet:upload:{upload_id}"


def _keys(upload_id: str) -> list[str]:
    record = _record(upload_id)
    return [record, f"{record}:parts", f"{record}:digests"]
