"""`clipfleet keys`: the file of API keys that CLIPFLEET_KEYS_FILE names. No service is asked."""

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
    help="Make, list and revoke API keys. A running service sees it within a second.",
    no_args_is_help=True,
)

KeyName = Annotated[str, typer.Argument(help="Who uses it; one key a name.")]
File = Annotated[
    Path, typer.Option("--file", envvar="CLIPFLEET_KEYS_FILE", help="The file of the keys.")
]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="read (default), write, admin.")]
Collections = Annotated[
    list[str] | None,
    typer.Option("--collection", help="A name, or a pattern as 'acme-*'; repeatable. None: all."),
]
Roots = Annotated[
    list[str] | None,
    typer.Option(
        "--root",
        help="A folder that its jobs may index, with all below; repeatable. `none`: no folder. "
        "Left out: what CLIPFLEET_SOURCE_ROOTS lists.",
    ),
]
Buckets = Annotated[
    list[str] | None,
    typer.Option(
        "--bucket",
        help="s3://bucket/prefix that its jobs may index, with all below; repeatable. `none`: no "
        "bucket. Left out: what CLIPFLEET_SOURCE_BUCKETS lists.",
    ),
]
Expires = Annotated[
    str | None, typer.Option(help="90d, 12h, 30m, or a time as 2030-01-31T00:00:00Z. None: never.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="None: what the service gives all.")]

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
    """Make a key and print it, this once: the file keeps only its hash."""
    secret = keys.new_secret()
    made = _record(
        name=name,
        hash=keys.hash_of(secret),
        scopes=scope or ["read"],
        collections=collection,
        roots=_listed(root),
        buckets=_listed(bucket),
        expires_at=_time(expires) if expires is not None else None,
        requests_per_minute=requests_per_minute,
    )

    def added(old: tuple[Key, ...]) -> list[Key]:
        if any(key.name == name for key in old):
            said = f"there is a key {name!r}: choose another name (to rotate: {name}-2), "
            raise ValueError(said + "or revoke it first")
        return [*old, made]

    _change(file, added)
    if json:
        print(json_module.dumps({"key": secret, **_shown(made)}, indent=2))
        return
    show.err.print(f"the key {name}, shown this once:", markup=False)
    print(secret)


@app.command("list")
def list_keys(file: File, json: Json = False) -> None:
    """All keys, but for the secrets, which nobody has."""
    found = _read(file)
    if json:
        print(json_module.dumps({"keys": [_shown(key) for key in found]}, indent=2))
        return
    columns = ("name", "scopes", "collections", "roots", "buckets", "expires", "a minute")
    table = Table(*columns, box=None)
    for key in found:
        expires = f"{key.expires_at:%F %R %Z}" if key.expires_at else "never"
        expires += " (expired)" if key.expired(keys.now()) else ""
        most = str(key.requests_per_minute or "")
        where = " ".join(key.collections or ["all"])
        sources = (_sources(key.roots), _sources(key.buckets))
        table.add_row(key.name, " ".join(key.scopes), where, *sources, expires, most)
    show.out.print(table if found else "no keys")


@app.command("revoke")
def revoke(name: KeyName, file: File, json: Json = False) -> None:
    """Take a key away; whoever uses it is answered 401 within a second."""

    def left(old: tuple[Key, ...]) -> list[Key]:
        kept = [key for key in old if key.name != name]
        if len(kept) == len(old):
            raise ValueError(f"there is no key {name!r} in {file}")
        return kept

    _read(file)
    _change(file, left)
    print(json_module.dumps({"revoked": name}) if json else f"revoked {name}")


def _record(**fields: object) -> Key:
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":  # it names what was given
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


def _listed(given: list[str] | None) -> list[str] | None:
    """`none` alone is an empty list."""
    return [] if given == [NONE] else given or None


def _sources(listed: tuple[str, ...] | None) -> str:
    return "the service's" if listed is None else " ".join(listed) or NONE


def _shown(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"hash"})


def _time(text: str) -> datetime:
    if found := re.fullmatch(r"([0-9]{1,5})([dhm])", text):
        return keys.now().replace(microsecond=0) + timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        given = datetime.fromisoformat(text)
        given = given if given.tzinfo else given.astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"--expires {text!r} is neither as 90d nor a time") from error
    if given <= keys.now():
        raise typer.BadParameter(f"--expires {text!r} is over already")
    return given
