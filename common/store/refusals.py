"""Translates errors of pymilvus and gRPC into those of the store port."""

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
    """The store rejected a call as invalid: a bug of this program, not an error of the caller."""


def translated(
    error: Exception, collection: Collection | None, uri: str, database: str
) -> ClipfleetError:
    """Translate an error of a call to Milvus.

    Args:
        error: the error.
        collection: the collection of the call, if any.
        uri: the address of Milvus, for the message.
        database: the name of the database, for the message.
    """
    text, code = str(error), getattr(error, "code", None)
    if reason := _rejection(error, uri, database):
        return StoreRefuses(reason)
    if code == NOT_FOUND or "collection not found" in text or "can't find collection" in text:
        name = collection.name if collection else "?"
        return CollectionGone(f"collection {name!r} no longer exists")
    if code in REJECTED or "cannot parse expression" in text:
        return StoreRejected(f"the store rejected a request: {text[:300]}")
    log.warning("Milvus: %s", text[:300])
    if "No space left" in text:
        return StoreUnavailable("the disk of the vector store is full; free space on it")
    return StoreUnavailable("the vector store does not answer; try again")


def _rejection(error: Exception, uri: str, database: str) -> str:
    """Why Milvus rejects our configuration, and which setting to change; "" when it does not."""
    if getattr(error, "code", None) == NO_DATABASE or "database not found" in str(error):
        create = f"create it with `MilvusClient(...).create_database({database!r})`"
        return f"Milvus has no database {database!r} (CLIPFLEET_MILVUS_DATABASE); {create}"
    if "needs start with" in str(error):
        return f"CLIPFLEET_MILVUS_URI is not an address of Milvus: {_shown(uri)}"
    cause = _rpc_error(error)
    if cause is None:
        return ""
    if cause.code() == grpc.StatusCode.UNAUTHENTICATED:
        return "Milvus refuses CLIPFLEET_MILVUS_TOKEN (user:password, or an API key)"
    if cause.code() == grpc.StatusCode.PERMISSION_DENIED:
        return f"Milvus denies permission to the user in CLIPFLEET_MILVUS_TOKEN: {_line(cause)}"
    return _handshake(_line(cause), uri)


def _handshake(text: str, uri: str) -> str:
    where = _shown(uri)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"the certificate of Milvus at {where} is not signed by a trusted authority; set "
            "CLIPFLEET_MILVUS_CA to the CA certificate (PEM) used to verify the Milvus server"
        )
    if "Hostname Verification" in text:
        return f"the certificate of Milvus at {where} is for another host name"
    if "WRONG_VERSION_NUMBER" in text:
        return f"Milvus at {where} does not use TLS: CLIPFLEET_MILVUS_URI must begin with http://"
    if "Socket closed" in text and _speaks_tls(uri):
        return f"Milvus at {where} uses TLS: CLIPFLEET_MILVUS_URI must begin with https://"
    return ""


def _speaks_tls(uri: str) -> bool:
    parts = urlsplit(uri)
    plain = parts.scheme != "https" and parts.hostname
    return bool(plain) and speaks_tls(parts.hostname or "", parts.port or 19530)


def _rpc_error(error: BaseException) -> Any:
    """The error of gRPC in the chain of causes; pymilvus raises its own error in its place."""
    while not isinstance(error, grpc.RpcError):
        cause = error.__cause__
        if cause is None or cause is error:  # pymilvus does `raise e from e`
            return None
        error = cause
    return error


def _line(error: Any) -> str:
    return " ".join(str(error.details() or "").split())[:300]


def _shown(uri: str) -> str:
    """The address without the password that it may contain."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
