"""What Milvus' errors mean, in clipfleet's words."""

import logging
from typing import Any
from urllib.parse import urlsplit

import grpc

from clipfleet.common.collection import Collection
from clipfleet.common.errors import ClipfleetError
from clipfleet.common.store import CollectionGone, StoreRefuses, StoreUnavailable
from clipfleet.common.tls import speaks_tls

NOT_FOUND = 100
NO_DATABASE = 800
REJECTED = (6, 1100, 1101, 1700)

log = logging.getLogger(__name__)


class StoreRejected(ClipfleetError):
    """The store understood and said no: a fault of this program, not of the caller."""


def translated(
    error: Exception, collection: Collection | None, uri: str, database: str
) -> ClipfleetError:
    text, code = str(error), getattr(error, "code", None)
    if why := _refusal(error, uri, database):
        return StoreRefuses(why)
    if code == NOT_FOUND or "collection not found" in text or "can't find collection" in text:
        name = collection.name if collection else "?"
        return CollectionGone(f"collection {name!r} is not there any more")
    if code in REJECTED or "cannot parse expression" in text:
        return StoreRejected(f"the store rejected a request: {text[:300]}")
    log.warning("Milvus: %s", text[:300])
    if "No space left" in text:
        return StoreUnavailable("the vector store's disk is full; it goes on when there is room")
    return StoreUnavailable("the vector store does not answer just now; try again")


def _refusal(error: Exception, uri: str, database: str) -> str:
    """Why Milvus will not have us however often we ask, and what to do; empty when it may yet."""
    if getattr(error, "code", None) == NO_DATABASE or "database not found" in str(error):
        make = f"`MilvusClient(...).create_database({database!r})` makes one"
        return f"Milvus has no database {database!r} (CLIPFLEET_MILVUS_DATABASE); {make}"
    if "needs start with" in str(error):
        return f"CLIPFLEET_MILVUS_URI is no address of a Milvus: {_shown(uri)}"
    cause = _rpc_error(error)
    if cause is None:
        return ""
    if cause.code() == grpc.StatusCode.UNAUTHENTICATED:
        return "Milvus refuses CLIPFLEET_MILVUS_TOKEN (user:password, or an API key)"
    if cause.code() == grpc.StatusCode.PERMISSION_DENIED:
        return f"Milvus does not let the user of CLIPFLEET_MILVUS_TOKEN: {_line(cause)}"
    return _handshake(_line(cause), uri)


def _handshake(said: str, uri: str) -> str:
    where = _shown(uri)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            f"the certificate of Milvus at {where} is not signed by an authority trusted here; "
            "CLIPFLEET_MILVUS_CA names the file with the certificate of its authority"
        )
    if "Hostname Verification" in said:
        return f"the certificate of Milvus at {where} is for another host name"
    if "WRONG_VERSION_NUMBER" in said:
        return f"Milvus at {where} speaks no TLS: CLIPFLEET_MILVUS_URI must begin with http://"
    if "Socket closed" in said and _speaks_tls(uri):
        return f"Milvus at {where} speaks TLS: CLIPFLEET_MILVUS_URI must begin with https://"
    return ""


def _speaks_tls(uri: str) -> bool:
    parts = urlsplit(uri)
    plain = parts.scheme != "https" and parts.hostname
    return bool(plain) and speaks_tls(parts.hostname or "", parts.port or 19530)


def _rpc_error(error: BaseException) -> Any:
    """gRPC's own error, which pymilvus hides behind a sentence of its own."""
    while not isinstance(error, grpc.RpcError):
        cause = error.__cause__
        if cause is None or cause is error:  # pymilvus does `raise e from e`
            return None
        error = cause
    return error


def _line(error: Any) -> str:
    return " ".join(str(error.details() or "").split())[:300]


def _shown(uri: str) -> str:
    """Without the password that it may carry."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
