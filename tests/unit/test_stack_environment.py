"""The parts of `clipfleet up` have the settings of the stack."""

from pathlib import Path
from typing import Any

import pytest

from clipfleet.common.settings import Settings
from clipfleet.embedded.stack import environment_of

SETTINGS: dict[str, Any] = {
    "source_roots": (Path("/a b"), Path("/c")),
    "source_buckets": ("s3://bucket/prefix",),
    "private_paths": (Path("/private"),),
    "allowed_hosts": ("localhost", "[::1]"),
    "cors_origins": ("http://localhost:3000", "https://app.example.org"),
    "root_path": "/clip",
    "model": "hash:32",
    "compile": True,
    "feeders": 3,
    "lease_s": 12.5,
}


def test_every_setting_reaches_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(**SETTINGS)
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    lists = {name for name, value in dict(Settings()).items() if isinstance(value, tuple)}
    assert lists <= SETTINGS.keys(), "settings that are lists are all tried here"


def test_nested_settings_are_inherited() -> None:
    nested: dict[str, Any] = {
        "limits": {"top_k": 7},
        "fetch": {"tries": 2},
        "webhooks": {"per_host": 1},
    }
    assert environment_of(Settings(**nested)).keys() == {"CLIPFLEET_MODEL"}
