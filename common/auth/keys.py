"""API keys: what they may do, and the file in which they are stored.

A key is the prefix `cf_` and 256 random bits. The file contains only its SHA-256. Such a key cannot
be guessed, so a slow hash for passwords would only slow down every request.
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

from clipfleet.common.errors import StartupError, reason_of
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
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")  # each includes the ones before it
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_*-]{1,63}$")]
Change = Callable[[tuple["Key", ...]], Sequence["Key"]]
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


def _root(path: str) -> str:
    if not os.path.isabs(path):
        raise ValueError(f"{path[:200]!r} is not an absolute path")
    return os.path.normpath(path)


Root = Annotated[str, AfterValidator(_root)]


class Key(BaseModel):
    """An API key, as the file describes it.

    An unknown field is an error: `collection` in place of `collections` must not mean that the key
    may use all collections.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: KeyName = Field(description="Name of the key, unique in the file.")
    hash: str = Field(
        pattern=r"^sha256:[0-9a-f]{64}$", description="SHA-256 of the secret, from `hash_of`."
    )
    scopes: tuple[Scope, ...] = Field(
        min_length=1, description="What the key may do: write includes read, admin includes both."
    )
    collections: tuple[Pattern, ...] | None = Field(
        None,
        min_length=1,
        description="Collections that it may use, by name or by pattern with *; absent: all.",
    )
    roots: tuple[Root, ...] | None = Field(
        None, description="Folders that its jobs may read; absent: CLIPFLEET_SOURCE_ROOTS."
    )
    buckets: tuple[BucketUrl, ...] | None = Field(
        None, description="Buckets that its jobs may read; absent: CLIPFLEET_SOURCE_BUCKETS."
    )
    expires_at: AwareDatetime | None = Field(
        None, description="When the key expires; absent: never."
    )
    requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Requests per minute; absent: CLIPFLEET_LIMITS__REQUESTS_PER_MINUTE.",
    )

    def may(self, scope: Scope) -> bool:
        """Whether the key has this scope, or one that includes it."""
        return max(map(SCOPES.index, self.scopes)) >= SCOPES.index(scope)

    def sees(self, collection: str) -> bool:
        """Whether the key may use the collection with this name."""
        if self.collections is None:
            return True
        return any(fnmatchcase(collection, pattern) for pattern in self.collections)

    def expired(self, now: datetime) -> bool:
        """Whether the key has expired at this time."""
        return self.expires_at is not None and self.expires_at <= now


class KeysFile(BaseModel):
    """The content of the file: JSON with a list of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _names_and_hashes_differ(self) -> "KeysFile":
        for field in ("name", "hash"):
            count = Counter(getattr(key, field) for key in self.keys)
            if twice := [value for value, uses in count.items() if uses > 1]:
                raise ValueError(f"two keys have the {field} {twice[0]}")
        return self


def new_secret() -> str:
    """A random secret, as clients send it."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """The hash of a secret, as the file contains it."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


def find_key(secret: str, keys: Iterable[Key]) -> Key | None:
    """The key with this secret, or None. Compares with every key, each in constant time."""
    digest, match = hash_of(secret), None
    for key in keys:
        if hmac.compare_digest(digest, key.hash):
            match = key
    return match


def now() -> datetime:
    """The current time, with a time zone."""
    return datetime.now(UTC)


def check_keys(keys_file: str, is_open: bool, service: SourceGrant) -> None:
    """Check the settings of API keys, and the file, before a gateway starts.

    Args:
        keys_file: the setting `keys_file`.
        is_open: the setting `open`.
        service: what the service may read.

    Raises:
        StartupError: a gateway cannot start with them.
    """
    if path := keys_path(keys_file, is_open):
        require_within(read_keys(path), service, path)


def require_within(keys: Iterable[Key], service: SourceGrant, path: Path) -> None:
    """Check that no key may read more than the service.

    Args:
        path: the keys file, for the message.

    Raises:
        StartupError: a key names a folder or a bucket that the service may not read.
    """
    for key in keys:
        for field, setting, of_key, of_service, contains in (
            ("roots", ROOTS_SETTING, key.roots, service.roots, contains_path),
            ("buckets", BUCKETS_SETTING, key.buckets, service.buckets, contains_bucket),
        ):
            for place in of_key or ():
                if of_service is None or any(contains(allowed, place) for allowed in of_service):
                    continue
                allowed_places = ", ".join(of_service) or "which is empty"
                raise StartupError(
                    f"the keys file {path} cannot be used: `{field}` of the key {key.name!r} has "
                    f"{place!r}, which is outside {setting} ({allowed_places})"
                )


def keys_path(keys_file: str, is_open: bool) -> Path | None:
    """The path of the keys file; None when there are no keys.

    Raises:
        StartupError: the settings `keys_file` and `open` are both set.
    """
    if keys_file and is_open:
        message = "CLIPFLEET_KEYS_FILE and CLIPFLEET_OPEN contradict each other; unset one of them"
        raise StartupError(message)
    return Path(keys_file) if keys_file else None


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read the keys file.

    Raises:
        StartupError: it cannot be read or is not valid; `detail` says why.
    """
    try:
        return KeysFile.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        message = f"the keys file {path} cannot be read: {reason_of(error)}; "
        message += "create it with `clipfleet keys create NAME --file FILE`"
        raise StartupError(message) from error
    except ValidationError as error:
        raise StartupError(
            f"the keys file {path} cannot be used: {_validation_problem(error)}"
        ) from error


def _validation_problem(error: ValidationError) -> str:
    """Where the file is invalid, and why. Never the value, which may be a misplaced secret."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def change_keys(path: Path, change: Change) -> None:
    """Change the keys in the file, in one step. Other processes that change the file wait.

    A new file is created if there is none; only its owner may read it.

    Args:
        change: takes the keys and returns the new keys.

    Raises:
        StartupError: the file cannot be read or is not valid.
    """
    path = path.resolve()  # replaces the file behind a link, not the link
    with _exclusive_lock(path.parent):
        old = read_keys(path) if path.exists() else ()
        new = KeysFile(keys=tuple(change(old)))
        _write(path, new.model_dump(mode="json", exclude_none=True))


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    import fcntl  # does not exist on Windows, where the client's commands must run

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, document: object) -> None:
    """Replace the file. It keeps its owner and mode, so that the gateway can still read it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            old = path.stat()
            os.chmod(temporary, old.st_mode & 0o777)
            with suppress(PermissionError):
                os.chown(temporary, old.st_uid, old.st_gid)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
