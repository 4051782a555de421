"""API keys: what they may do, and the file that holds them.

A key is 256 random bits behind the prefix `cf_`. The file has only its SHA-256: nobody guesses such
a key, so that a slow hash, made for passwords, would slow down every request and protect nothing.
"""

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from clipfleet.common.errors import StartupError
from clipfleet.common.http.source_grants import (
    BUCKETS_SETTING,
    ROOTS_SETTING,
    BucketUrl,
    SourceGrant,
    contains_bucket,
    contains_path,
)

PREFIX = "cf_"
Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")  # each has all that the ones before it have
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_*-]{1,63}$")]
Change = Callable[[tuple["Key", ...]], Sequence["Key"]]
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


def _root(path: str) -> str:
    if not os.path.isabs(path):
        raise ValueError(f"{path[:200]!r} is no absolute path")
    return os.path.normpath(path)


Root = Annotated[str, AfterValidator(_root)]


class Key(BaseModel):
    """One record of the file. A word that it does not know is an error: `collection` in place of
    `collections` must not mean all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: KeyName
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    collections: tuple[Pattern, ...] | None = Field(
        None, min_length=1, description="names, or patterns with *; absent: all"
    )
    roots: tuple[Root, ...] | None = Field(
        None, description="folders that its jobs may read; absent: CLIPFLEET_SOURCE_ROOTS"
    )
    buckets: tuple[BucketUrl, ...] | None = Field(
        None, description="buckets that its jobs may read; absent: CLIPFLEET_SOURCE_BUCKETS"
    )
    expires_at: AwareDatetime | None = None
    requests_per_minute: int | None = Field(None, ge=1)

    def may(self, scope: Scope) -> bool:
        return max(map(SCOPES.index, self.scopes)) >= SCOPES.index(scope)

    def sees(self, collection: str) -> bool:
        if self.collections is None:
            return True
        return any(fnmatchcase(collection, pattern) for pattern in self.collections)

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class KeysFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> "KeysFile":
        for what in ("name", "hash"):
            count = Counter(getattr(key, what) for key in self.keys)
            if twice := [one for one, times in count.items() if times > 1]:
                raise ValueError(f"two keys have the {what} {twice[0]}")
        return self


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


def find_key(secret: str, keys: Iterable[Key]) -> Key | None:
    """Whose it is. Every key is compared, each in constant time."""
    given, found = hash_of(secret), None
    for key in keys:
        if hmac.compare_digest(given, key.hash):
            found = key
    return found


def now() -> datetime:
    return datetime.now(UTC)


def check_keys(keys_file: str, is_open: bool, service: SourceGrant) -> None:
    """StartupError for settings with which no gateway can start: said before one is.

    Args:
        service: what the service may read.
    """
    if path := keys_path(keys_file, is_open):
        require_within(read_keys(path), service, path)


def require_within(keys: Iterable[Key], service: SourceGrant, path: Path) -> None:
    """StartupError where a key of the file `path` names what the service itself may not read."""
    for key in keys:
        for word, setting, mine, ours, contains in (
            ("roots", ROOTS_SETTING, key.roots, service.roots, contains_path),
            ("buckets", BUCKETS_SETTING, key.buckets, service.buckets, contains_bucket),
        ):
            for one in mine or ():
                if ours is not None and not any(contains(each, one) for each in ours):
                    said = f"`{word}` of the key {key.name!r} has {one!r}, which lies outside "
                    said += f"{setting} ({', '.join(ours) or 'which lists nothing'})"
                    raise StartupError(f"the keys file {path} cannot be used: {said}")


def keys_path(keys_file: str, is_open: bool) -> Path | None:
    """Where the keys are, of the settings `keys_file` and `open`. None: there are none."""
    if keys_file and is_open:
        said = "CLIPFLEET_KEYS_FILE and CLIPFLEET_OPEN contradict each other: leave one out"
        raise StartupError(said)
    return Path(keys_file) if keys_file else None


def read_keys(path: Path) -> tuple[Key, ...]:
    """StartupError says what is wrong with the file."""
    try:
        return KeysFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        said = f"the keys file {path} cannot be read: {error.strerror}; "
        said += "`clipfleet keys create NAME --file FILE` makes one"
        raise StartupError(said) from error
    except ValidationError as error:
        raise StartupError(f"the keys file {path} cannot be used: {_fault(error)}") from error


def _fault(error: ValidationError) -> str:
    """Where, and what; never the value, which may be a key in the wrong place."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def change_keys(path: Path, change: Change) -> None:
    """Replace the file's keys by what `change` makes of them, all at once. Whoever changes it
    meanwhile waits. Where there is no file, one is made that only its owner reads."""
    path = path.resolve()  # behind a link: the file, not the link, is replaced
    with _alone(path.parent):
        old = read_keys(path) if path.exists() else ()
        new = KeysFile(keys=tuple(change(old)))
        _write(path, new.model_dump(mode="json", exclude_none=True))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    import fcntl  # not everywhere, and the command line must run there, too

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, document: object) -> None:
    """A file that exists keeps its owner and mode, so that the gateway may go on reading it."""
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            old = path.stat()
            os.chmod(made, old.st_mode & 0o777)
            with suppress(PermissionError):
                os.chown(made, old.st_uid, old.st_gid)
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
