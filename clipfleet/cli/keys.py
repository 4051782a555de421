"""`clipfleet keys`: creates, lists and revokes API keys in the keys file. Sends no request."""

import json as json_module
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from clipfleet.cli import show
from clipfleet.cli.show import Json
from clipfleet.common.auth import keys
from clipfleet.common.auth.keys import Key
from clipfleet.common.errors import StartupError

app = typer.Typer(
    help="Create, list and revoke API keys. A running service applies changes within a second.",
    no_args_is_help=True,
)

KeyName = Annotated[str, typer.Argument(help="Name of the key, which no other key has.")]
File = Annotated[Path, typer.Option("--file", envvar="CLIPFLEET_KEYS_FILE", help="Keys file.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="Scope: read, write or admin. Repeatable. Default: read."),
]
Collections = Annotated[
    list[str] | None,
    typer.Option(
        "--collection",
        help="Collection that the key may use, or a pattern such as 'acme-*'. Repeatable. "
        "Default: all.",
    ),
]
Roots = Annotated[
    list[str] | None,
    typer.Option(
        "--root",
        help="Folder that jobs of the key may index, with all below it. `none`: no folder. "
        "Repeatable. Default: CLIPFLEET_SOURCE_ROOTS.",
    ),
]
Buckets = Annotated[
    list[str] | None,
    typer.Option(
        "--bucket",
        help="s3://bucket/prefix that jobs of the key may index, with all below it. `none`: no "
        "bucket. Repeatable. Default: CLIPFLEET_SOURCE_BUCKETS.",
    ),
]
Expires = Annotated[
    str | None,
    typer.Option(
        help="When the key expires: 90d, 12h, 30m or a time such as 2030-01-31T00:00:00Z. "
        "Default: never.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Requests per minute that the key may send. "
        "Default: CLIPFLEET_LIMITS__REQUESTS_PER_MINUTE.",
    ),
]

NONE = "none"
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@app.command("create")
def create(
    name: KeyName,
    file: File,
    scope: Scopes = None,
    collection: Collections = None,
    root: Roots = None,
    bucket: Buckets = None,
    expires: Expires = None,
    requests_per_minute: Limit = None,
    json: Json = False,
) -> None:
    """Create a key and print it. It cannot be printed again: the file holds only its hash."""
    secret = keys.new_secret()
    key = _record(
        name=name,
        hash=keys.hash_of(secret),
        scopes=scope or ["read"],
        collections=collection,
        roots=_allowed_sources(root),
        buckets=_allowed_sources(bucket),
        expires_at=_expiry(expires) if expires is not None else None,
        requests_per_minute=requests_per_minute,
    )

    def add(old: tuple[Key, ...]) -> list[Key]:
        if any(key.name == name for key in old):
            message = f"a key {name!r} exists: choose another name (to rotate: {name}-2), "
            raise ValueError(message + "or revoke it first")
        return [*old, key]

    _change(file, add)
    if json:
        print(json_module.dumps({"key": secret, **_without_hash(key)}, indent=2))
        return
    show.err.print(f"the key {name}, which is shown only once:", markup=False)
    print(secret)


@app.command("list")
def list_keys(file: File, json: Json = False) -> None:
    """List all keys, without their secrets, which are not stored."""
    listed = _read(file)
    if json:
        print(json_module.dumps({"keys": [_without_hash(key) for key in listed]}, indent=2))
        return
    columns = ("name", "scopes", "collections", "roots", "buckets", "expires", "a minute")
    table = Table(*columns, box=None)
    for key in listed:
        expires = f"{key.expires_at:%F %R %Z}" if key.expires_at else "never"
        expires += " (expired)" if key.expired(keys.now()) else ""
        limit = str(key.requests_per_minute or "")
        where = " ".join(key.collections or ["all"])
        sources = (_sources(key.roots), _sources(key.buckets))
        table.add_row(key.name, " ".join(key.scopes), where, *sources, expires, limit)
    show.out.print(table if listed else "no keys")


@app.command("revoke")
def revoke(name: KeyName, file: File, json: Json = False) -> None:
    """Revoke a key. The service refuses it (401) within a second."""

    def remove(old: tuple[Key, ...]) -> list[Key]:
        remaining = [key for key in old if key.name != name]
        if len(remaining) == len(old):
            raise ValueError(f"there is no key {name!r} in {file}")
        return remaining

    _read(file)
    _change(file, remove)
    print(json_module.dumps({"revoked": name}) if json else f"revoked {name}")


def _record(**fields: object) -> Key:
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # its message names the value
            raise ValueError(f"{first['loc'][0]}: {first['ctx']['error']}") from error
        raise ValueError(f"{first['loc'][0]}: {first['msg']}, not {first['input']!r}") from error


def _read(file: Path) -> tuple[Key, ...]:
    try:
        return keys.read_keys(file)
    except StartupError as error:
        raise ValueError(error.detail) from error


def _change(file: Path, change: keys.Change) -> None:
    try:
        keys.change_keys(file, change)
    except StartupError as error:
        raise ValueError(error.detail) from error


def _allowed_sources(values: list[str] | None) -> list[str] | None:
    """Values of --root or --bucket: `none` alone becomes an empty list."""
    return [] if values == [NONE] else values or None


def _sources(values: tuple[str, ...] | None) -> str:
    return "the service's" if values is None else " ".join(values) or NONE


def _without_hash(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"hash"})


def _expiry(text: str) -> datetime:
    if match := re.fullmatch(r"([0-9]{1,5})([dhm])", text):
        return keys.now().replace(microsecond=0) + timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"--expires {text!r} is neither a duration such as 90d nor a time"
        ) from error
    if moment <= keys.now():
        raise typer.BadParameter(f"--expires {text!r} is in the past")
    return moment
