"""Notifications about objects: their forms, and which of them concern a registered source.

An event only says that something happened to a key. Whether the object exists is looked up when the
run reads the source. So events may arrive twice and in any order.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from clipfleet.common.errors import InvalidRequest
from clipfleet.common.http import uris
from clipfleet.common.http.patterns import Pattern
from clipfleet.common.http.source_grants import BucketPlace
from clipfleet.common.http.suffixes import SUFFIXES, ending_of
from clipfleet.common.identity import text_problem
from clipfleet.common.ledger.registered import RegisteredSource

MAX_DEPTH = 4  # envelopes in envelopes
MAX_KEY_BYTES = 4_096
FORMS = (
    'S3 notifications ({"Records": [...]}, also of MinIO), EventBridge events of S3, either of '
    'them in an envelope of SNS or SQS, or {"keys": [...]} with keys relative to the source'
)
CHANGES = ("ObjectCreated:", "ObjectRemoved:", "LifecycleExpiration:")
EVENT_BRIDGE = ("Object Created", "Object Deleted")
CONFIRMATIONS = ("SubscriptionConfirmation", "UnsubscribeConfirmation")


@dataclass
class Events:
    """What a notification is about.

    Attributes:
        objects: (bucket, key) of objects that were created or removed.
        keys: keys relative to a source.
        ignored: the number of events of other kinds, or without a bucket or a key.
    """

    objects: list[tuple[str, str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    ignored: int = 0


class UnknownForm(InvalidRequest):
    """A notification has none of the forms that are known."""

    def __init__(self) -> None:
        super().__init__(f"this is no notification about objects; known forms are {FORMS}")


def parse_events(document: Any) -> Events:
    """Parse a notification.

    Args:
        document: the parsed JSON.

    Raises:
        InvalidRequest: it has no form that is known.
    """
    events = Events()
    _parse(document, events, 0)
    return events


def _parse(document: Any, events: Events, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise UnknownForm
    if isinstance(document, list) and document:
        for entry in document:
            _parse(entry, events, depth + 1)
        return
    if not isinstance(document, dict):
        raise UnknownForm
    kind = document.get("Type")
    if kind in CONFIRMATIONS:
        raise InvalidRequest(
            f"this is a {kind} of SNS; the service opens no addresses from notifications: confirm "
            "the subscription yourself with its SubscribeURL"
        )
    if isinstance(keys := document.get("keys"), list):
        _take_keys(keys, events)
    elif isinstance(records := document.get("Records"), list):
        for record in records:
            _parse_record(record, events, depth)
    elif isinstance(messages := document.get("Messages"), list):  # the answer of SQS
        for message in messages:
            _parse_text(_field(message, "Body"), events, depth)
    elif kind == "Notification":
        _parse_text(document.get("Message"), events, depth)
    elif isinstance(document.get("detail"), dict):
        _parse_event_bridge(document, events)
    elif "EventName" in document and "Key" in document:  # MinIO's form without Records
        bucket, _, key = str(document["Key"]).partition("/")
        _take(str(document["EventName"]), bucket, unquote_plus(key), events)
    elif document.get("Event") == "s3:TestEvent":
        events.ignored += 1
    else:
        raise UnknownForm


def _parse_record(record: Any, events: Events, depth: int) -> None:
    body = _field(record, "body") or _field(_field(record, "Sns"), "Message")
    if body:  # of SQS, or of SNS, as Lambda passes them on
        _parse_text(body, events, depth)
        return
    described = _field(record, "s3")
    bucket = _field(_field(described, "bucket"), "name")
    key = _field(_field(described, "object"), "key")
    name = _field(record, "eventName")
    if not all(isinstance(text, str) for text in (bucket, key, name)):
        events.ignored += 1
        return
    _take(name, bucket, unquote_plus(key), events)


def _parse_text(text: Any, events: Events, depth: int) -> None:
    """Parse a notification that is a text in another one."""
    try:
        document = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnknownForm from error
    _parse(document, events, depth + 1)


def _parse_event_bridge(document: Mapping[str, Any], events: Events) -> None:
    """Its keys are not quoted, unlike those of S3's own notifications."""
    detail = document["detail"]
    bucket = _field(_field(detail, "bucket"), "name")
    key = _field(_field(detail, "object"), "key")
    if document.get("detail-type") not in EVENT_BRIDGE or not (bucket and isinstance(key, str)):
        events.ignored += 1
        return
    events.objects.append((str(bucket), key))


def _take(name: str, bucket: str, key: str, events: Events) -> None:
    if name.removeprefix("s3:").startswith(CHANGES) and bucket and key:
        events.objects.append((bucket, key))
    else:
        events.ignored += 1


def _take_keys(keys: list[Any], events: Events) -> None:
    for key in keys:
        if not isinstance(key, str):
            raise InvalidRequest("keys is a list of texts: keys relative to the source")
        events.keys.append(key)


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def keys_for(record: RegisteredSource, events: Events) -> list[str]:
    """The keys that a run of a source is to look at, one for each event about the source.

    Keys of other buckets and prefixes, and of files that are no images, are left out.

    Raises:
        InvalidRequest: the source takes no events.
    """
    source = record.job["source"]
    place = str(source.get("uri") or source.get("path") or "")
    kind = source["type"]
    if kind not in ("bucket", "folder", "manifest", "archive") or Pattern(place).is_pattern:
        what = "a pattern" if Pattern(place).is_pattern else f"of type {kind}"
        raise InvalidRequest(
            f"source {record.name!r} is {what}, for which there are no events; register each "
            "folder, bucket, manifest or archive as a source of its own"
        )
    if (record.job.get("mirror") or {}).get("dry_run"):
        raise InvalidRequest(
            f"source {record.name!r} only reports what it would do (mirror.dry_run), and takes no "
            "events; register it without dry_run"
        )
    if kind == "folder":
        return list(_in_folder(place, events.keys, recursive=source.get("recursive", True)))
    if kind == "bucket":
        return list(_in_bucket(place, events))
    return list(_whole(place, events))


def reads_keys(source: Mapping[str, Any]) -> bool:
    """Whether a run for events reads the keys alone; otherwise it reads the whole source."""
    return source["type"] in ("bucket", "folder")


def _in_folder(folder: str, keys: Iterable[str], *, recursive: bool) -> Iterator[str]:
    """Paths below a folder, from paths relative to it or absolute ones."""
    folder = posixpath.normpath(folder)
    for key in keys:
        path = posixpath.normpath(posixpath.join(folder, key))
        inner = path.removeprefix(folder.rstrip("/") + "/")
        if inner == path or not (recursive or "/" not in inner):
            continue
        if _is_image(inner):
            yield inner


def _in_bucket(uri: str, events: Events) -> Iterator[str]:
    """Keys in the bucket of a source, below its prefix."""
    _, _, path = uri.partition("://")
    prefix = path.partition("/")[2].strip("/")
    prefix = f"{prefix}/" if prefix else ""
    name = BucketPlace.of(uri).bucket
    full = [key for bucket, key in events.objects if bucket == name]
    full += [f"{prefix}{key.lstrip('/')}" for key in events.keys]
    for key in full:
        if key.startswith(prefix) and _is_image(key.removeprefix(prefix)):
            yield key


def _whole(uri: str, events: Events) -> Iterator[str]:
    """The key of a manifest or an archive, whose events stand for the whole source."""
    if uris.kind(uri) == "bucket":
        place = BucketPlace.of(uri)
        key = "/".join(place.parts)
        if (place.bucket, key) in events.objects:
            yield key
    name = posixpath.basename(uri.rstrip("/"))
    if name in events.keys:
        yield name


def _is_image(key: str) -> bool:
    """Whether a key below a source is that of an image, and not hidden."""
    parts = key.split("/")
    if any(part.startswith(".") for part in parts) or text_problem("key", key, MAX_KEY_BYTES):
        return False
    return ending_of(parts[-1]) in SUFFIXES
