"""Which Redis, Milvus and blobs belong together, whatever their addresses look like.

Redis holds a random id. The first part that uses a store with it leaves the id there as a mark;
who finds a store without it later has another one than the rest. Addresses may differ between
hosts, change, or be restored elsewhere: what was marked stays marked.
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
MARKING = "clipfleet:deployment:marking:"
MARKING_S = 60


class DeploymentMarker(Protocol):
    def marked(self, mark: str) -> bool: ...

    def mark(self, mark: str) -> None:
        """Leave the mark. Others than it may be there."""
        ...


class MarkedBlobs:
    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def marked(self, mark: str) -> bool:
        try:
            self._blobs.get(f"deployments/{mark}", 0)
        except BlobGone:
            return False
        return True

    def mark(self, mark: str) -> None:
        self._blobs.put(f"deployments/{mark}", BytesIO(b"clipfleet\n"))


def is_same_deployment(client: "redis.Redis", name: str, place: DeploymentMarker) -> bool:
    """Whether the place is the one that this Redis' other parts use; the first to ask decides.

    Unavailable while somebody else is deciding.
    """
    mark = _id(client)
    known = _ask(client.hget, MARKED, name)  # before looking: known means that the mark is there
    if place.marked(mark):
        return True
    if known:
        return False
    _take(client, name)
    place.mark(mark)
    with translating_redis_errors():
        pipe = client.pipeline()
        pipe.hset(MARKED, name, 1)
        pipe.delete(MARKING + name)
        pipe.execute()
    return True


def _take(client: "redis.Redis", name: str) -> None:
    """The right to decide; it expires with whoever dies of it."""
    taken = _ask(client.set, MARKING + name, 1, nx=True, ex=MARKING_S)
    if taken and not _ask(client.hget, MARKED, name):
        return
    if taken:  # decided between our two looks
        _ask(client.delete, MARKING + name)
    raise Unavailable(f"another part is just deciding which {name} is meant")


def _id(client: "redis.Redis") -> str:
    _ask(client.set, ID, secrets.token_hex(8), nx=True)
    return str(_ask(client.get, ID).decode())


def _ask(call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    with translating_redis_errors():
        return call(*args, **kw)
