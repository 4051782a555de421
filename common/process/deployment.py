"""Which Redis, Milvus and blob store belong to the same deployment, whatever their addresses are.

Redis holds a random id. The first part that uses a store leaves the id there as a mark, and Redis
records that. A part that later finds a store without the mark uses another store than the rest.
The mark is part of the data: it survives another address, a move and a restore.
"""

import secrets
from collections.abc import Callable
from io import BytesIO
from typing import Any, Protocol

import redis

from clipfleet.common.blobs import BlobGone, Blobs
from clipfleet.common.errors import Unavailable
from clipfleet.common.redis.client import translating_redis_errors

ID = "clipfleet:deployment"
MARKED = "clipfleet:deployment:marked"
MARKING = "clipfleet:deployment:marking:"  # a lock: the key of the store that is being marked
MARKING_S = 60  # expiry of the lock, seconds


class DeploymentMarker(Protocol):
    """A place that can hold marks: a store or a blob store."""

    def has_mark(self, mark: str) -> bool:
        """Whether the place holds this mark.

        Args:
            mark: the id of a deployment, 16 hex digits.

        Raises:
            Unavailable: the place does not answer.
        """
        ...

    def set_mark(self, mark: str) -> None:
        """Leave a mark. A mark that is there already stays; so do marks of other deployments.

        Args:
            mark: the id of a deployment, 16 hex digits.

        Raises:
            Unavailable: the place does not answer.
        """
        ...


class MarkedBlobs:
    """Marks as blobs: `deployments/MARK`."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def has_mark(self, mark: str) -> bool:
        try:
            self._blobs.get(f"deployments/{mark}", 0)
        except BlobGone:
            return False
        return True

    def set_mark(self, mark: str) -> None:
        self._blobs.put(f"deployments/{mark}", BytesIO(b"clipfleet\n"))


def is_same_deployment(client: "redis.Redis", name: str, place: DeploymentMarker) -> bool:
    """Whether the place is the one that the other parts on this Redis use.

    When no part has used such a place before, this one is marked.

    Args:
        name: "milvus" or "blobs".

    Raises:
        Unavailable: another part is marking its place, or Redis or the place does not answer.
    """
    mark = _id(client)
    known = _call(client.hget, MARKED, name)  # read first: when it is set, the mark was left
    if place.has_mark(mark):
        return True
    if known:
        return False
    _acquire(client, name)
    place.set_mark(mark)
    with translating_redis_errors():
        pipe = client.pipeline()
        pipe.hset(MARKED, name, 1)
        pipe.delete(MARKING + name)
        pipe.execute()
    return True


def _acquire(client: "redis.Redis", name: str) -> None:
    """Acquire the lock for marking. It expires, in case this process ends while it holds it."""
    acquired = _call(client.set, MARKING + name, 1, nx=True, ex=MARKING_S)
    if acquired and not _call(client.hget, MARKED, name):
        return
    if acquired:  # another part marked its place since `MARKED` was read
        _call(client.delete, MARKING + name)
    raise Unavailable(f"another part is marking its {name} as that of this deployment; try again")


def _id(client: "redis.Redis") -> str:
    _call(client.set, ID, secrets.token_hex(8), nx=True)
    return str(_call(client.get, ID).decode())


def _call(call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    with translating_redis_errors():
        return call(*args, **kw)
