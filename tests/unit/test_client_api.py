"""The public names of the package and their arguments."""

import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest

import clipfleet
from clipfleet import AsyncClient, Client, JobFailed, NotFound, ProblemError

NAMES = {
    "Alias",
    "AsyncClient",
    "Client",
    "Collection",
    "Error",
    "Export",
    "Failure",
    "Failures",
    "Fleet",
    "Image",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "Match",
    "Migration",
    "Mirror",
    "Missing",
    "NotFound",
    "ProblemError",
    "Recall",
    "RegisteredSource",
    "SearchResult",
    "Timing",
    "Unreachable",
    "UnreadableImages",
    "Updated",
    "WebhookError",
    "WebhookEvent",
    "__version__",
    "verify_webhook",
}
METHODS = {
    "cancel_migration": "(collection)",
    "finish_migration": "(collection, *, force)",
    "migration": "(collection)",
    "pause_migration": "(collection)",
    "resume_migration": "(collection)",
    "roll_back_migration": "(collection, *, force)",
    "tag": "(collection, vocabulary, *, field, min_confidence, template, filter, namespace, save, "
    "wait, progress)",
    "preview_tags": "(collection, vocabulary, *, field, min_confidence, template, filter, "
    "namespace)",
    "saved_tags": "(collection)",
    "forget_tags": "(collection)",
    "start_migration": "(collection, model)",
    "swap_migration": "(collection, *, force)",
    "unreadable": "(collection, limit, *, cursor)",
    "alias": "(name)",
    "aliases": "()",
    "cancel": "(job)",
    "collection": "(name)",
    "collections": "()",
    "count": "(collection, *, filter, namespace)",
    "create_collection": "(name, *, metric, model, dim, fields)",
    "delete": "(collection, *, filter, namespace, all)",
    "delete_alias": "(name)",
    "delete_collection": "(name)",
    "delete_job": "(job)",
    "delete_image": "(collection, id, *, namespace)",
    "delete_source": "(collection, name)",
    "embed": "(texts, images, *, model)",
    "export_collection": "(collection, file, *, overwrite, progress)",
    "export_images": "(collection, target, *, format, filter, namespace, query, top_k, shard_size, "
    "originals, overwrite, restart, progress)",
    "failures": "(job, limit, offset)",
    "fleet": "()",
    "image": "(collection, id, *, namespace, include_values)",
    "import_collection": "(collection, file, *, progress)",
    "index": "(collection, source, *, namespace, label_from_folder, on_existing, exif, "
    "mirror, webhook, webhook_secret, idempotency_key, wait, progress, create)",
    "iter_failures": "(job)",
    "iter_ids": "(collection, *, namespace)",
    "iter_missing": "(job)",
    "job": "(job)",
    "jobs": "(limit, offset, *, collection, state)",
    "missing": "(job, limit, cursor)",
    "notify_source": "(collection, name, keys)",
    "pause_source": "(collection, name)",
    "register_source": "(collection, name, source, *, interval, paused, namespace, "
    "label_from_folder, on_existing, exif, mirror, webhook, webhook_secret)",
    "resume_source": "(collection, name)",
    "run_source": "(collection, name, *, wait, progress)",
    "source": "(collection, name)",
    "sources": "(collection)",
    "ordered_ids": "(collection, *, order_by, descending, filter, namespace)",
    "recall": "(collection, *, k, sample, filter, namespace, seed)",
    "retry": "(job, *, wait, progress)",
    "search": "(collection, *, text, image, id, vector, terms, top_k, offset, filter, min_score, "
    "group_by, group_size, collapse, namespace, include_values, include_metadata, "
    "include_size, exact)",
    "search_many": "(collection, queries)",
    "original": "(collection, id, *, namespace)",
    "preview": "(collection, id, *, namespace)",
    "set_alias": "(name, collection)",
    "thumbnail": "(collection, id, *, namespace)",
    "update_images": "(collection, images, *, filter, all, label, metadata, namespace, dry_run, "
    "progress)",
    "upload": "(collection, files, *, ids, labels, metadata, namespace, label, on_existing, "
    "exif, webhook, webhook_secret, idempotency_key, wait, progress, create)",
    "upload_folder": "(collection, folders, *, label_from_folder, label, recursive, namespace, "
    "on_existing, exif, webhook, webhook_secret, wait, progress, sent, create)",
    "upsert": "(collection, vectors, *, namespace)",
    "wait": "(job, *, progress, every_s)",
}


def methods(kind: type) -> dict[str, Any]:
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "aclose")
    }


def arguments(signature: inspect.Signature) -> str:
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(bare))


def test_the_names_and_arguments_are_these() -> None:
    assert set(clipfleet.__all__) == NAMES
    assert dir(clipfleet) == sorted(NAMES)
    assert all(getattr(clipfleet, name) is not None for name in NAMES)
    assert {name: arguments(signature) for name, signature in methods(Client).items()} == METHODS


def test_the_package_shows_its_public_names_alone() -> None:
    assert set(dir(clipfleet)) == NAMES


def test_every_public_name_has_a_docstring() -> None:
    kinds = {name: getattr(clipfleet, name) for name in NAMES - {"__version__"}}
    docs = {
        name: vars(kind).get("__doc__") if isinstance(kind, type) else kind.__doc__
        for name, kind in kinds.items()
    }
    assert [name for name, doc in docs.items() if not doc] == []
    assert [name for name in METHODS if not getattr(Client, name).__doc__] == []


def test_both_clients_take_and_give_the_same() -> None:
    plain, awaited = methods(Client), methods(AsyncClient)
    assert plain.keys() == awaited.keys()
    for name, signature in plain.items():
        assert signature.parameters == awaited[name].parameters, name
        if name not in ("iter_failures", "iter_ids", "iter_missing"):
            assert signature.return_annotation == awaited[name].return_annotation, name
    plain_signature, awaited_signature = inspect.signature(Client), inspect.signature(AsyncClient)
    assert plain_signature.parameters == awaited_signature.parameters


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_takes_and_shows_how_it_is_called(name: str) -> None:
    text = inspect.getdoc(getattr(Client, name)) or ""
    assert "\nExample:\n" in text
    assert "await" not in text
    assert f"client.{name}(" in text
    for argument in methods(Client)[name].parameters:
        assert argument == "self" or f"\n    {argument}: " in text


def test_the_package_alone_imports_no_http_client() -> None:
    """Every worker imports the package."""
    program = "import sys, clipfleet; sys.exit('httpx' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_client_and_command_line_need_their_four_dependencies_alone() -> None:
    """The process can import only what `pip install clipfleet` installs without extras."""
    program = """
import sys
for name in ("celery", "fastapi", "fsspec", "kombu", "numpy", "PIL", "prometheus_client",
             "psutil", "pyarrow", "pydantic_settings", "pymilvus", "redis", "torch", "transformers",
             "uvicorn"):
    sys.modules[name] = None
import clipfleet
clipfleet.Client, clipfleet.AsyncClient
from clipfleet.cli import app
app(["--help"])
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "index" in done.stdout


def test_a_name_that_is_none_of_them_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Clientele'"):
        clipfleet.Clientele  # noqa: B018


def test_errors_survive_the_way_between_processes() -> None:
    error = NotFound(404, {"type": "urn:problem:clipfleet:not-found", "detail": "there is no x"})
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ProblemError)
    assert (again.status, again.slug, again.title, str(again)) == (
        404,
        "not-found",
        "HTTP 404",
        "there is no x",
    )
    assert issubclass(JobFailed, clipfleet.Error)
