"""The keys file: its content, how it is written, and when it is read again."""

import json
import logging
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from clipfleet.api.auth.keyring import KeyRing
from clipfleet.cli import app
from clipfleet.common.auth.keys import (
    SCOPES,
    Key,
    change_keys,
    check_keys,
    find_key,
    hash_of,
    keys_path,
    new_secret,
    read_keys,
)
from clipfleet.common.errors import StartupError
from clipfleet.common.http.source_grants import SourceGrant
from clipfleet.common.settings import Settings
from clipfleet.embedded.stack import Options, Stack
from support.ledgers import Clock


def a_key(name: str = "shop", secret: str = "s", **more: Any) -> Key:
    return Key.model_validate({"name": name, "hash": hash_of(secret), "scopes": ["read"], **more})


def write(path: Path, *keys: Key) -> None:
    """Overwrite the file in place, as an editor does: the inode stays the same."""
    document = {"v": 1, "keys": [key.model_dump(mode="json", exclude_none=True) for key in keys]}
    path.write_text(json.dumps(document))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def run(file: Path, *args: str) -> Result:
    return CliRunner().invoke(app, ["keys", *args, "--file", str(file)])


def test_a_secret_is_recognisable_and_256_bits_long() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(re.fullmatch(r"cf_[A-Za-z0-9_-]{43}", secret) for secret in secrets)


def test_a_key_is_found_by_its_secret_alone() -> None:
    key, other = a_key("one", "1"), a_key("other", "2")
    assert find_key("1", [key, other]) is key
    assert find_key("2", [key, other]) is other
    for secret in ("", "3", key.hash, hash_of("1"), "é\x80"):
        assert find_key(secret, [key, other]) is None


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_has_all_that_smaller_ones_have(scope: str) -> None:
    key = a_key(scopes=[scope])
    assert [key.may(required) for required in SCOPES] == [
        n <= SCOPES.index(key.scopes[0]) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("collections", "seen"),
    [
        (None, {"acme", "acme-cats", "other", "ACME"}),
        (["acme"], {"acme"}),
        (["acme-*"], {"acme-cats"}),
        (["acme*", "other"], {"acme", "acme-cats", "other"}),
        (["*"], {"acme", "acme-cats", "other", "ACME"}),
    ],
)
def test_which_collections_a_key_sees(collections: Any, seen: set[str]) -> None:
    key = a_key(collections=collections)
    assert {name for name in ("acme", "acme-cats", "other", "ACME") if key.sees(name)} == seen


def test_a_key_is_in_force_until_it_expires() -> None:
    end = datetime(2030, 1, 1, tzinfo=UTC)
    key = a_key(expires_at=end)
    assert not key.expired(end - timedelta(seconds=1))
    assert key.expired(end)
    assert not a_key().expired(end)


@pytest.mark.parametrize(
    "wrong",
    [
        {"collection": ["acme"]},
        {"collections": []},
        {"collections": ["[a-z]"]},
        {"collections": "acme"},
        {"scopes": []},
        {"scopes": ["root"]},
        {"hash": "sha256:abc"},
        {"hash": "cf_the-key-itself"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"requests_per_minute": 0},
        {"name": "a/b"},
    ],
)
def test_a_record_that_may_mean_something_else_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        a_key(**wrong)


def test_what_is_wrong_with_a_file_is_said_without_what_it_holds(file: Path) -> None:
    file.write_text(json.dumps({"keys": [{"name": "a", "hash": "cf_secret", "scopes": ["read"]}]}))
    with pytest.raises(StartupError, match=r"keys\.json cannot be used: keys\.0\.hash: ") as error:
        read_keys(file)
    assert "cf_secret" not in str(error.value)
    file.write_text("{")
    with pytest.raises(StartupError, match="Invalid JSON"):
        read_keys(file)
    write(file, a_key(), a_key("shop", "other"))
    with pytest.raises(StartupError, match="two keys have the name shop"):
        read_keys(file)
    write(file, a_key("one"), a_key("two"))
    with pytest.raises(StartupError, match="two keys have the hash sha256:"):
        read_keys(file)
    with pytest.raises(StartupError, match="No such file"):
        KeyRing(file.with_name("none"))


def test_keys_and_an_open_service_contradict_each_other() -> None:
    with pytest.raises(StartupError, match="contradict"):
        keys_path("keys.json", True)
    assert keys_path("", True) is keys_path("", False) is None


def ring_of(file: Path, *keys: Key) -> tuple[KeyRing, Clock]:
    write(file, *keys)
    clock = Clock(100.0)
    return KeyRing(file, clock), clock


def test_a_file_that_was_edited_is_read_a_second_later(file: Path) -> None:
    ring, clock = ring_of(file, a_key())
    write(file, a_key(), a_key("second", "2"))
    clock.now += 0.9
    assert [key.name for key in ring.active_keys()] == ["shop"]
    clock.now += 0.1
    assert [key.name for key in ring.active_keys()] == ["shop", "second"]


def test_a_link_that_points_elsewhere_is_followed(tmp_path: Path) -> None:
    """Kubernetes mounts a Secret with links: keys.json -> ..data/keys.json, and ..data -> a folder
    for each version. The new file may have the size and time of the old one."""
    for version, name in (("v1", "old"), ("v2", "new")):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "keys.json", a_key(name))
        os.utime(tmp_path / version / "keys.json", (1, 1))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    clock = Clock(100.0)
    ring = KeyRing(tmp_path / "keys.json", clock)
    (tmp_path / "..tmp").symlink_to("v2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    clock.now += 1
    assert [key.name for key in ring.active_keys()] == ["new"]


def test_a_broken_file_is_said_once_and_the_keys_before_stay(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring, clock = ring_of(file, a_key())
    file.write_text('{"keys": [')
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            clock.now += 1
            assert [key.name for key in ring.active_keys()] == ["shop"]
        file.unlink()
        clock.now += 1
        assert [key.name for key in ring.active_keys()] == ["shop"]
        write(file, a_key("new"))
        clock.now += 1
        assert [key.name for key in ring.active_keys()] == ["new"]
    messages = [record.getMessage() for record in caplog.records]
    assert [("stay in force" in message, "Invalid JSON" in message) for message in messages] == [
        (True, True),
        (True, False),
        (False, False),
    ]


def test_the_command_makes_a_file_with_a_hash_that_only_its_owner_reads(file: Path) -> None:
    result = run(file, "create", "shop", "--scope", "write", "--collection", "shop-*", "--json")
    document = json.loads(result.stdout)
    (key,) = read_keys(file)
    assert find_key(document.pop("key"), [key]) is key
    assert document["scopes"] == ["write"]
    assert key.collections == ("shop-*",)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_the_key_is_printed_once_and_alone(file: Path) -> None:
    result = run(file, "create", "shop")
    secret = result.stdout.strip()
    assert re.fullmatch(r"cf_[\w-]{43}", secret)
    assert secret not in file.read_text()
    assert secret not in run(file, "list").output
    assert read_keys(file)[0].scopes == ("read",)


@pytest.mark.parametrize(("duration", "hours"), [("90d", 2160), ("12h", 12), ("30m", 0.5)])
def test_a_key_expires_after_a_while(file: Path, duration: str, hours: float) -> None:
    run(file, "create", "shop", "--expires", duration)
    (key,) = read_keys(file)
    assert key.expires_at
    assert abs(key.expires_at - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(minutes=5)


def test_a_key_expires_at_a_time(file: Path) -> None:
    run(file, "create", "shop", "--expires", "2999-01-31T00:00:00Z")
    (key,) = read_keys(file)
    assert key.expires_at == datetime(2999, 1, 31, tzinfo=UTC)
    over = key.model_copy(update={"expires_at": datetime(2020, 1, 31, tzinfo=UTC)})
    change_keys(file, lambda _: [over])
    assert "(expired)" in run(file, "list").stdout


@pytest.mark.parametrize("never", ["", "2020-01-31", "0001-01-01", "soon"])
def test_a_key_that_would_be_dead_or_eternal_by_mistake_is_not_made(file: Path, never: str) -> None:
    """`--expires "$TTL"` with an empty TTL must not create a key that never expires."""
    assert run(file, "create", "shop", "--expires", never).exit_code != 0
    assert not file.exists()


def test_a_rotation_is_a_second_key_and_a_revocation(file: Path) -> None:
    run(file, "create", "shop", "--requests-per-minute", "60")
    again = run(file, "create", "shop")
    assert "to rotate: shop-2" in str(again.exception)
    run(file, "create", "shop-2")
    assert [key.name for key in read_keys(file)] == ["shop", "shop-2"]
    assert run(file, "revoke", "shop").stdout == "revoked shop\n"
    assert [key.name for key in read_keys(file)] == ["shop-2"]
    assert "no key 'shop'" in str(run(file, "revoke", "shop").exception)


def test_a_file_keeps_its_mode_and_its_link(file: Path) -> None:
    """A gateway of another user must still be able to read the file."""
    run(file, "create", "shop")
    file.chmod(0o640)
    link = file.with_name("link")
    link.symlink_to(file.name)
    run(link, "create", "other")
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert len(read_keys(file)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["create", "a b"],
        ["create", "a", "--scope", "root"],
        ["create", "a", "--collection", "a/b"],
        ["create", "a", "--expires", "soon"],
        ["create", "a", "--requests-per-minute", "0"],
        ["revoke", "a"],
        ["list"],
    ],
)
def test_a_wrong_command_leaves_no_file(file: Path, wrong: list[str]) -> None:
    assert run(file, *wrong).exit_code != 0
    assert not file.exists()


def test_up_says_who_is_answered_when_others_can_reach_it(file: Path) -> None:
    def warning(host: str, **settings: Any) -> str:
        all_settings = Settings(**{"keys_file": "", "open": False, **settings})
        return Options(file.parent, host, 8000, 1, all_settings).warning

    assert "only clients on this machine are answered" in warning("0.0.0.0")
    assert "CLIPFLEET_KEYS_FILE" in warning("192.0.2.1")
    assert "may do anything" in warning("0.0.0.0", open=True)
    assert warning("0.0.0.0", keys_file=str(file)) == ""
    assert warning("127.0.0.1") == warning("::1") == warning("localhost", open=True) == ""


@pytest.mark.parametrize(
    ("options", "roots", "buckets"),
    [
        ([], None, None),
        (["--root", "/data/a/../b", "--root", "/c"], ("/data/b", "/c"), None),
        (["--bucket", "s3://b/x", "--root", "none"], (), ("s3://b/x",)),
        (["--bucket", "none"], None, ()),
    ],
)
def test_a_key_has_roots_and_buckets_of_its_own(
    file: Path, options: list[str], roots: Any, buckets: Any
) -> None:
    result = run(file, "create", "shop", *options)
    assert result.exit_code == 0, result.exception
    (key,) = read_keys(file)
    assert (key.roots, key.buckets) == (roots, buckets)
    shown = run(file, "list").stdout
    for listed in (roots, buckets):
        assert all(entry in shown for entry in listed or ())
        assert ("none" if listed == () else "the service's" if listed is None else "") in shown


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--root", "data"], "roots: 'data' is not an absolute path"),
        (["--root", "none", "--root", "/x"], "roots: 'none' is not an absolute path"),
        (
            ["--bucket", "/data"],
            "buckets: '/data' is not a bucket; it must begin with s3://, gs://",
        ),
        (["--bucket", "s3://b/../c"], "buckets: 's3://b/../c' has a part . or .. in its key"),
    ],
)
def test_what_is_no_root_or_bucket_is_refused_in_one_line(
    file: Path, wrong: list[str], reason: str
) -> None:
    refused = run(file, "create", "shop", *wrong)
    assert str(refused.exception).startswith(reason)
    assert not file.exists()


SERVICE = SourceGrant(roots=("/data",), buckets=("s3://b/prod",))


@pytest.mark.parametrize(
    ("grant", "reason"),
    [
        ({"roots": ["/database"]}, "`roots` of the key 'shop' has '/database'"),
        ({"roots": ["/data/../etc"]}, "'/etc', which is outside CLIPFLEET_SOURCE_ROOTS (/data)"),
        ({"buckets": ["s3://b/production"]}, "outside CLIPFLEET_SOURCE_BUCKETS (s3://b/prod)"),
        ({"buckets": ["gs://b/prod"]}, "outside CLIPFLEET_SOURCE_BUCKETS"),
    ],
)
def test_a_key_with_more_than_the_service_has_is_an_error(
    file: Path, grant: dict[str, Any], reason: str
) -> None:
    write(file, a_key("shop", **grant))
    with pytest.raises(StartupError) as caught:
        KeyRing(file, service=SERVICE)
    assert reason in caught.value.detail
    with pytest.raises(StartupError):
        check_keys(str(file), False, SERVICE)


def test_a_key_within_what_the_service_has_is_none(file: Path) -> None:
    write(file, a_key(roots=["/data", "/data/x"], buckets=["s3://b/prod/x"]))
    check_keys(str(file), False, SERVICE)
    (key,) = KeyRing(file, service=SERVICE).active_keys()
    assert key.roots == ("/data", "/data/x")
    nothing = SourceGrant(roots=(), buckets=())
    with pytest.raises(StartupError, match="which is empty"):
        check_keys(str(file), False, nothing)


def test_a_change_that_gives_too_much_takes_no_key_away(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(100.0)
    write(file, a_key("shop"))
    ring = KeyRing(file, clock, SERVICE)
    write(file, a_key("greedy", roots=["/"]))
    clock.now += 1
    assert [key.name for key in ring.active_keys()] == ["shop"]
    assert "'greedy'" in caplog.text


@pytest.mark.parametrize(
    ("values", "roots"),
    [
        ({}, (Path("/"),)),
        ({"keys_file": "/keys.json"}, ()),
        ({"open": True}, ()),
        ({"keys_file": "/keys.json", "source_roots": [Path("/data")]}, (Path("/data"),)),
    ],
)
def test_up_reaches_the_whole_disk_only_for_its_own_user(
    tmp_path: Path, values: dict[str, Any], roots: tuple[Path, ...]
) -> None:
    private = Path("/private")
    settings = Settings(**values, private_paths=(private,))
    stack = Stack(Options(tmp_path, "127.0.0.1", 8000, 1, settings), threading.Event())
    completed = stack.complete("redis://", "http://")
    assert completed.source_roots == roots
    assert completed.private_paths == (private, tmp_path)
    elsewhere = Stack(Options(tmp_path, "0.0.0.0", 8000, 1, settings), threading.Event())
    assert elsewhere.complete("", "").source_roots == settings.source_roots
