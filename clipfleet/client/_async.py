"""The asynchronous client. `_sync.py` is generated from this file by `scripts/sync_client.py`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import httpx

from clipfleet.client import _requests
from clipfleet.client._config import OUTAGE_S, PAGE, http_client, require_wait, service_url
from clipfleet.client._requests import AnyFilter, ApiRequest, OnExisting
from clipfleet.client._retries import Outcome, poll_intervals_s, retry_delay_s
from clipfleet.client.arguments import seconds, text, whole
from clipfleet.client.export_file import ExportFile, is_complete, new_file
from clipfleet.client.exports.originals import Originals
from clipfleet.client.exports.plan import ExportPlan, Format, new_plan
from clipfleet.client.exports.plan import Progress as ExportProgress
from clipfleet.client.exports.shards import ShardsExport
from clipfleet.client.exports.spool import Spool
from clipfleet.client.exports.write import write_export
from clipfleet.client.folder_upload import Folders, FolderUpload, LocalFolders, Outgoing, Sent
from clipfleet.client.payloads import Files, ImageInput, Numbers
from clipfleet.client.progress import Listener, Progress, listening, sending
from clipfleet.client.source_detection import AnySource
from clipfleet.common.collection import FieldType, Metric
from clipfleet.common.http.maps import MapMethod
from clipfleet.common.http.schemas import JobState
from clipfleet.common.http.uploads import UploadOut
from clipfleet.errors import JobFailed, NotFound, ProblemError, Unreachable
from clipfleet.results import (
    ENDED,
    Alias,
    Collection,
    EventsAnswer,
    Export,
    Failure,
    Failures,
    Fleet,
    Image,
    Job,
    Map,
    MapPoints,
    Migration,
    Missing,
    Recall,
    RegisteredSource,
    SavedTags,
    SearchResult,
    TagsPreview,
    UnreadableImages,
    Updated,
)

T = TypeVar("T")


class AsyncClient:
    """A client of one clipfleet service.

    Every method sends one HTTP request unless its documentation says otherwise. Every method
    raises `Unreachable` when no service answers, and `ProblemError` when the service refuses the
    request. `NotFound` is the `ProblemError` for a collection, job or image that does not exist
    or that the API key may not see. `InvalidRequest` is the one for arguments that are not valid,
    whether the client finds that before it sends anything, or the service: it names the argument
    in `field`, and is a ValueError, too.

    Numbers and arrays of numpy, torch and pandas are taken wherever numbers are, dates and times in
    filters and metadata, and `pathlib.Path` for files, folders and ids.

    A request is sent again after a refused connection, and after a 429 or 503 with a Retry-After
    of at most 30 seconds. A request that can be repeated safely is also sent again when the
    connection breaks. The delay is Retry-After, or else 0.1 s, doubled at each further attempt.

    Args:
        url: address of the gateway. `http://` may be left out. Default: the environment's
            CLIPFLEET_URL, then http://127.0.0.1:8000.
        api_key: sent as a bearer token. Default: the environment's CLIPFLEET_API_KEY, then none.
        timeout_s: seconds that the client waits for a connection, and for each read and write.
        retries: how often a request is sent again at most.

    Example:
        async with AsyncClient() as client:
            await client.index("photos", "/data/photos", wait=True, progress=True)
            result = await client.search("photos", text="a dog in the snow")
            for match in result.matches:
                print(match.score, match.id)
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        self.url = service_url(url)
        self._connect = partial(http_client, url=self.url, api_key=api_key, timeout_s=timeout_s)
        self._http = self._connect(httpx.AsyncClient)
        self._retries = whole("retries", retries)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. The client cannot be used afterwards.

        Sends no request. Leaving an `async with` block does the same.

        Example:
            await client.aclose()
        """
        await self._http.aclose()

    # Collections

    async def collections(self) -> list[Collection]:
        """List all collections that the API key may see.

        Returns:
            The collections in the order of their names, each with its number of images.

        Example:
            names = [collection.name for collection in await client.collections()]
        """
        return await self._request(_requests.collections())

    async def collection(self, name: str) -> Collection:
        """Describe one collection.

        Args:
            name: the collection's name.

        Returns:
            Its metric, model, dimension, metadata fields and number of images.

        Raises:
            NotFound: there is no such collection.

        Example:
            count = (await client.collection("photos")).count
        """
        return await self._request(_requests.collection(name))

    async def create_collection(
        self,
        name: str,
        *,
        metric: Metric = "cosine",
        model: str | None = None,
        dim: int | None = None,
        fields: Mapping[str, FieldType] | None = None,
    ) -> Collection:
        """Create a collection, or check that the existing one is as described.

        Args:
            name: 1 to 63 letters, digits, `_` and `-`. The first is a letter or a digit.
            metric: how embeddings are compared: "cosine", "dot" or "euclidean".
            model: the CLIP model. Default: the service's.
            dim: numbers in an embedding. Default: the model's, if a worker has the model.
            fields: metadata fields to declare, each "string", "int", "float", "bool", "string[]" or
                "int[]".

        Returns:
            The collection.

        Raises:
            InvalidRequest: `name`, `metric`, `dim` or the type of a field is not valid.
            ProblemError: a collection of this name exists and differs (409), or `dim` is not given
                and no worker has the model (503).

        Example:
            await client.create_collection("photos", fields={"year": "int"})
        """
        return await self._request(_requests.create_collection(name, metric, model, dim, fields))

    async def delete_collection(self, name: str) -> None:
        """Delete a collection with its embeddings and thumbnails. Image files are not touched.

        Args:
            name: the collection's name.

        Raises:
            NotFound: there is no such collection.
            ProblemError: the collection has aliases, or the name is an alias (409).

        Example:
            await client.delete_collection("photos")
        """
        await self._request(_requests.delete_collection(name))

    async def aliases(self) -> list[Alias]:
        """List all aliases of collections that the API key may see.

        Returns:
            The aliases in the order of their names, each with the collection that it stands for.

        Example:
            names = [alias.name for alias in await client.aliases()]
        """
        return await self._request(_requests.aliases())

    async def alias(self, name: str) -> Alias:
        """Look at an alias.

        Args:
            name: the alias.

        Returns:
            The alias with the name of the collection that it stands for.

        Raises:
            NotFound: there is no such alias.

        Example:
            collection = (await client.alias("photos")).collection
        """
        return await self._request(_requests.alias(name))

    async def set_alias(self, name: str, collection: str) -> Alias:
        """Create an alias, or move it to another collection, in one step.

        The alias can be used wherever the name of a collection is: in searches, jobs and so on.
        Each request is answered from the old collection or from the new one, never from both.

        Args:
            name: the alias, which is built like the name of a collection.
            collection: the name of the collection that it is to stand for.

        Returns:
            The alias.

        Raises:
            NotFound: there is no such collection.
            ProblemError: a collection is called `name`, or `collection` is an alias (409), the name
                is not valid (422), or the API key may not do this (403).

        Example:
            await client.set_alias("photos", "photos-2")
        """
        return await self._request(_requests.set_alias(name, collection))

    async def delete_alias(self, name: str) -> None:
        """Delete an alias. The collection stays.

        Args:
            name: the alias.

        Raises:
            NotFound: there is no such alias.

        Example:
            await client.delete_alias("photos")
        """
        await self._request(_requests.delete_alias(name))

    # Migrations

    async def make_map(
        self,
        collection: str,
        method: MapMethod = "auto",
        *,
        field: str | None = None,
        namespace: str = "default",
        seed: int = 0,
    ) -> Job:
        """Start a job that gives each image of a namespace a place in two dimensions.

        The map replaces the one before when it is finished.

        Args:
            collection: the collection.
            method: "pca", "pacmap", or "auto": pacmap where the workers have the extra `map`.
            field: a metadata field to colour by, beside the label and the declared fields.
            namespace: the namespace.
            seed: the same seed and images give the same map.

        Returns:
            The job. `wait` waits for its end.

        Raises:
            NotFound: there is no such collection.
            ProblemError: a job makes a map of this namespace already (409).

        Example:
            await client.wait(await client.make_map("photos"))
        """
        request = _requests.make_map(collection, method, field, namespace, seed)
        return await self._request(request)

    async def map_of(self, collection: str, namespace: str = "default") -> Map:
        """Look at the map of a namespace: how it was made, and which fields colour it.

        Args:
            collection: the collection.
            namespace: the namespace.

        Returns:
            What is known of it; `state` is "none" where there is no map.

        Raises:
            NotFound: there is no such collection.

        Example:
            missing = (await client.map_of("photos")).not_on_map
        """
        return await self._request(_requests.map_of(collection, namespace))

    async def map_points(
        self,
        collection: str,
        *,
        namespace: str = "default",
        field: str | None = None,
        page: int = 0,
    ) -> MapPoints:
        """Read a page of the points of a map.

        Args:
            collection: the collection.
            namespace: the namespace.
            field: the field whose values `codes` has; None: no codes.
            page: the page, from 0.

        Returns:
            The points as columns; `next` is the next page, None on the last one.

        Raises:
            NotFound: there is no such collection, map or page.
            ProblemError: the map has no colours for the field (422), or it was replaced meanwhile
                (409).

        Example:
            points = await client.map_points("photos", field="label")
        """
        return await self._request(_requests.map_points(collection, namespace, field, page))

    async def tag(
        self,
        collection: str,
        vocabulary: Iterable[str],
        *,
        field: str = "tags",
        min_confidence: float = 0.5,
        template: str = "a photo of a {}",
        filter: AnyFilter = None,
        namespace: str | None = None,
        save: bool = False,
        wait: bool = False,
        progress: Progress = False,
    ) -> Job:
        """Start a job that tags stored images with words, without reading the images again.

        Sends one request. `wait` adds one for every look at the job.

        Args:
            collection: the collection.
            vocabulary: up to 10,000 words or short phrases. Repeated words count once.
            field: the metadata field that gets the words as a list. It is declared if it is not.
            min_confidence: how sure a word must be for an image, 0 to 1.
            template: the text that is embedded for a word, which takes the place of `{}`.
            filter: metadata filter. Default: all images.
            namespace: the part of the collection. Default: all namespaces.
            save: also tag images that are indexed from now on.
            wait: return when the job has ended.
            progress: see `wait`.

        Returns:
            The job. `done` counts the images whose tags changed, `skipped` the others.

        Raises:
            InvalidRequest: an argument is not valid, or `progress` is given without `wait`.
            NotFound: there is no such collection.
            ProblemError: the collection declares the field with another type (409), or no worker
                has its model (503).
            JobFailed: with `wait`, the job failed as a whole.

        Example:
            await client.tag("photos", ["dog", "cat"], wait=True)
        """
        require_wait(wait, progress)
        request = _requests.tag(
            collection, vocabulary, field, min_confidence, template, filter, namespace, False, save
        )
        out = await self._request(request)
        assert out.job is not None
        return await self.wait(out.job, progress=progress) if wait else out.job

    async def preview_tags(
        self,
        collection: str,
        vocabulary: Iterable[str],
        *,
        field: str = "tags",
        min_confidence: float = 0.5,
        template: str = "a photo of a {}",
        filter: AnyFilter = None,
        namespace: str | None = None,
    ) -> TagsPreview:
        """Look at the words that a sample of the images would get from `tag`. Writes nothing.

        Args:
            collection: the collection.
            vocabulary: up to 500 words or short phrases.
            field: as for `tag`.
            min_confidence: as for `tag`.
            template: as for `tag`.
            filter: as for `tag`.
            namespace: as for `tag`.

        Returns:
            The number of images of each word, with examples.

        Raises:
            InvalidRequest: an argument is not valid.
            NotFound: there is no such collection.
            ProblemError: as for `tag`.

        Example:
            (await client.preview_tags("photos", ["dog", "cat"])).words[0].count
        """
        request = _requests.tag(
            collection, vocabulary, field, min_confidence, template, filter, namespace, True, False
        )
        out = await self._request(request)
        assert out.preview is not None
        return out.preview

    async def saved_tags(self, collection: str) -> SavedTags:
        """Look at the vocabulary by which images get tags when they are indexed.

        Args:
            collection: the collection.

        Raises:
            NotFound: there is no such collection, or no vocabulary is saved on it.

        Example:
            (await client.saved_tags("photos")).vocabulary
        """
        return await self._request(_requests.saved_tags(collection))

    async def forget_tags(self, collection: str) -> None:
        """Stop to tag images when they are indexed. Tags that images have stay.

        Args:
            collection: the collection. One without a saved vocabulary is no error.

        Raises:
            NotFound: there is no such collection.

        Example:
            await client.forget_tags("photos")
        """
        await self._request(_requests.forget_tags(collection))

    async def start_migration(self, collection: str, model: str) -> Migration:
        """Build a second generation of a collection with another model, beside its searches.

        Needs workers of that model. The images are read again from where they were.

        Args:
            collection: the collection.
            model: the other model.

        Returns:
            The migration. `migration` says how far it is.

        Raises:
            NotFound: there is no such collection.
            ProblemError: it has this model, or a migration that is not over (409), or no worker
                serves the model (503).

        Example:
            await client.start_migration("photos", "openai/clip-vit-base-patch32")
        """
        return await self._request(_requests.start_migration(collection, model))

    async def migration(self, collection: str) -> Migration:
        """Look at the migration of a collection: its progress and the comparison of the models.

        Args:
            collection: the collection.

        Returns:
            The migration that is not over, or else the last one.

        Raises:
            NotFound: there is no such collection, or it was never migrated.

        Example:
            missing = (await client.migration("photos")).missing
        """
        return await self._request(_requests.migration(collection))

    async def unreadable(
        self, collection: str, limit: int = 100, *, cursor: str = ""
    ) -> UnreadableImages:
        """List images that a migration cannot copy, because they cannot be read any more.

        Args:
            collection: the collection.
            limit: the number of images at most, 1,000 or fewer.
            cursor: `next` of the page before; "" for the first page.

        Returns:
            One page.

        Raises:
            NotFound: there is no such collection, or it was never migrated.

        Example:
            page = await client.unreadable("photos")
        """
        return await self._request(_requests.unreadable(collection, cursor, limit))

    async def pause_migration(self, collection: str) -> Migration:
        """Stop to copy images until the migration is resumed.

        Args:
            collection: the collection.

        Returns:
            The migration as it is then.

        Raises:
            NotFound: there is no such collection, or it was never migrated.
            ProblemError: it is swapped or over (409).

        Example:
            await client.pause_migration("photos")
        """
        return await self._request(_requests.change_migration(collection, "pause"))

    async def resume_migration(self, collection: str) -> Migration:
        """Go on with a paused migration. Images that could not be read are tried again.

        Args:
            collection: the collection.

        Returns:
            The migration as it is then.

        Raises:
            NotFound: there is no such collection, or it was never migrated.
            ProblemError: it is over (409).

        Example:
            await client.resume_migration("photos")
        """
        return await self._request(_requests.change_migration(collection, "resume"))

    async def swap_migration(self, collection: str, *, force: bool = False) -> Migration:
        """Answer searches with the new model from now on, in one step.

        Args:
            collection: the collection.
            force: do it although images are missing or cannot be read.

        Returns:
            The migration as it is then.

        Raises:
            NotFound: there is no such collection, or it was never migrated.
            ProblemError: images are missing or cannot be read (409), or no worker serves the new
                model (503).

        Example:
            await client.swap_migration("photos")
        """
        return await self._request(_requests.change_migration(collection, "swap", force))

    async def roll_back_migration(self, collection: str, *, force: bool = False) -> Migration:
        """Answer searches with the old model again. The migration goes on as before the swap.

        Args:
            collection: the collection.
            force: do it although images that were written since the swap are missing.

        Returns:
            The migration as it is then.

        Raises:
            NotFound: there is no such collection, or it was never migrated.
            ProblemError: it is not swapped, or images are missing (409).

        Example:
            await client.roll_back_migration("photos")
        """
        return await self._request(_requests.change_migration(collection, "rollback", force))

    async def finish_migration(self, collection: str, *, force: bool = False) -> Migration:
        """Delete the old generation. There is no way back.

        Args:
            collection: the collection.
            force: cancel the jobs that still write to the old generation, and delete it although
                the new one lacks images of it.

        Returns:
            The migration as it is then.

        Raises:
            NotFound: there is no such collection, or it was never migrated.
            ProblemError: it is not swapped, or jobs still write to the old generation (409).

        Example:
            await client.finish_migration("photos")
        """
        return await self._request(_requests.change_migration(collection, "finish", force))

    async def cancel_migration(self, collection: str) -> Migration:
        """Give a migration up and delete the new generation.

        Args:
            collection: the collection.

        Returns:
            The migration as it is then.

        Raises:
            NotFound: there is no such collection, or it was never migrated.
            ProblemError: it is swapped: roll it back first (409).

        Example:
            await client.cancel_migration("photos")
        """
        return await self._request(_requests.cancel_migration(collection))

    # Jobs

    async def index(
        self,
        collection: str,
        source: AnySource,
        *,
        namespace: str = "default",
        label_from_folder: bool = False,
        on_existing: OnExisting = "skip",
        exif: bool = False,
        mirror: bool | Mapping[str, Any] = False,
        webhook: str | None = None,
        webhook_secret: str | None = None,
        idempotency_key: str | None = None,
        wait: bool = False,
        progress: Progress = False,
        create: bool = True,
    ) -> Job:
        """Start a job that indexes the images of a source.

        Sends one request. `create` adds one or two, `wait` one for every look at the job.

        Args:
            collection: the collection that the images go into.
            source: a path or URI that the service can read (folder, manifest, archive, bucket,
                image URL), a pattern such as `/data/shards/{000..999}.tar` or
                `/data/2024-*/**/*.jpg`, a list of all these, or a mapping as in docs/sources.md.
            namespace: the part of the collection that the images go into.
            label_from_folder: the name of an image's folder becomes its label.
            on_existing: "skip" leaves an unchanged image as it is, "replace" embeds it again.
            exif: add to the metadata what EXIF says (taken_at, camera, latitude, longitude,
                altitude).
            mirror: delete images that this source had before and has no more, and do not read
                files that have not changed. True, or options such as {"missing": "report",
                "max_delete": 0.2, "dry_run": True} (docs/sources.md).
            webhook: address to which the service sends the end of the job (docs/webhooks.md).
            webhook_secret: signs it. Default: the secret of the service.
            idempotency_key: a second call with the same key and arguments within 24 hours returns
                the job of the first. Default: a new key.
            wait: return when the job has ended.
            progress: see `wait`.
            create: create the collection if it does not exist.

        Returns:
            The job, as it was when it was started or, with `wait`, when it ended.

        Raises:
            InvalidRequest: the source is not valid, or `progress` is given without `wait`.
            NotFound: there is no such collection, and `create` is False.
            ProblemError: the service may not read the source (403), `idempotency_key` was used
                for another job or another mirror of the source runs (409), or too many jobs are
                queued or running (503).
            JobFailed: with `wait`, the job failed as a whole.

        Example:
            job = await client.index("photos", "/data/photos", wait=True)
        """
        require_wait(wait, progress)
        request = _requests.index(
            collection, source, namespace, label_from_folder, on_existing, idempotency_key, exif,
            mirror,
        )  # fmt: skip
        request = _requests.with_webhook(request, webhook, webhook_secret)
        return await self._start(request, collection, wait, progress, create)

    async def upload(
        self,
        collection: str,
        files: Files,
        *,
        ids: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        namespace: str = "default",
        label: str = "",
        on_existing: OnExisting = "skip",
        exif: bool = False,
        webhook: str | None = None,
        webhook_secret: str | None = None,
        idempotency_key: str | None = None,
        wait: bool = False,
        progress: Progress = False,
        create: bool = True,
    ) -> Job:
        """Start a job that indexes files of this machine.

        Sends one request, which streams all files. `create` adds one or two, `wait` one for every
        look at the job.

        Args:
            collection: the collection that the images go into.
            files: the path of a file, or several paths.
            ids: the ids of the images, one for each file. Default: the names of the files, without
                their folders. An image with the same id is replaced.
            labels: the labels of the images, one for each file. Default: `label` for all.
            metadata: the metadata of the images, one mapping for each file. Default: none.
            namespace: the part of the collection that the images go into.
            label: the label of all of them.
            on_existing: "skip" leaves an unchanged image as it is, "replace" embeds it again.
            exif: add to the metadata what EXIF says (taken_at, camera, latitude, longitude,
                altitude).
            webhook: address to which the service sends the end of the job (docs/webhooks.md).
            webhook_secret: signs it. Default: the secret of the service.
            idempotency_key: a second call with the same key and arguments within 24 hours returns
                the job of the first. Default: a new key.
            wait: return when the job has ended.
            progress: see `wait`.
            create: create the collection if it does not exist.

        Returns:
            The job, as it was when it was started or, with `wait`, when it ended.

        Raises:
            InvalidRequest: there are no files, one is a folder, there are not as many ids, labels
                or metadata as files, an id, a label or metadata are not valid, two files have the
                same id, or `progress` is given without `wait`.
            OSError: a file cannot be read.
            NotFound: there is no such collection, and `create` is False.
            ProblemError: `idempotency_key` was used for another job (409), there are more than
                1,000 files or 1 GB (413; `upload_folder` takes more), or too many jobs or uploads
                are under way (429, 503).
            JobFailed: with `wait`, the job failed as a whole.

        Example:
            job = await client.upload("photos", ["a.jpg", "b.jpg"], label="cat", wait=True)
        """
        require_wait(wait, progress)
        request = _requests.upload(
            collection, files, namespace, label, on_existing, idempotency_key, exif, ids, labels,
            metadata,
        )  # fmt: skip
        request = _requests.with_webhook(request, webhook, webhook_secret)
        return await self._start(request, collection, wait, progress, create)

    async def upload_folder(
        self,
        collection: str,
        folders: Folders,
        *,
        label_from_folder: bool = False,
        label: str = "",
        recursive: bool = True,
        namespace: str = "default",
        on_existing: OnExisting = "skip",
        exif: bool = False,
        webhook: str | None = None,
        webhook_secret: str | None = None,
        wait: bool = False,
        progress: Progress = False,
        sent: Callable[[Sent], None] | None = None,
        create: bool = True,
    ) -> Job:
        """Start one job that indexes the images in folders of this machine.

        The id of an image is its path below the folder, such as `rome/IMG_0001.jpg`. With several
        folders or files it is the path below the folder that contains all of them. Hidden files and
        links to folders are left out, as when the service reads a folder. A file that cannot be
        read fails alone.

        An upload that broke off goes on when the method is called again with the same arguments on
        the same machine: only files that the service does not have are sent. Files of images that
        the collection has, and that have not changed, are not sent either.

        Sends two requests for every 1,000 images, more for large ones (32 MB or 500 images each),
        and three more. The client reads the files in the calling thread.

        Args:
            collection: the collection that the images go into.
            folders: the path of a folder, or several paths of folders and image files.
            label_from_folder: the name of an image's folder becomes its label.
            label: the label of all of them otherwise.
            recursive: include the folders in the folders.
            namespace: the part of the collection that the images go into.
            on_existing: "skip" leaves an unchanged image as it is, "replace" embeds it again.
            exif: add to the metadata what EXIF says (taken_at, camera, latitude, longitude,
                altitude).
            webhook: address to which the service sends the end of the job (docs/webhooks.md).
            webhook_secret: signs it. Default: the secret of the service.
            wait: return when the job has ended.
            progress: True shows the progress of the upload and, with `wait`, of the job. A function
                is called with the job, as in `wait`.
            sent: called with the progress of the upload after every request.
            create: create the collection if it does not exist.

        Returns:
            The job, as it was when it was started or, with `wait`, when it ended.

        Raises:
            InvalidRequest: there are no images in the folders.
            OSError: a folder does not exist, or cannot be listed.
            NotFound: there is no such collection, and `create` is False; or the upload was deleted
                in the meantime.
            ProblemError: the upload would have too many images or bytes (413), or too many uploads
                or jobs are under way (429, 503).
            JobFailed: with `wait`, the job failed as a whole.

        Example:
            job = await client.upload_folder("photos", "~/Pictures", label_from_folder=True)
        """
        _requests.require_webhook(webhook, webhook_secret)
        local = LocalFolders(folders, recursive, label_from_folder, label)
        key = local.key(namespace, on_existing, str(exif))
        opening = _requests.open_upload(collection, namespace, on_existing, exif, key)
        with sending(progress is True, sent) as tell:
            while True:
                plan = FolderUpload(local, exif=exif, skips=on_existing == "skip")
                described = await self._require_collection(collection, create)
                plan.model = described.model
                upload = await self._request(opening)
                tell(plan.sent)
                try:
                    await self._send_images(upload, plan, tell, asks=described.count > 0)
                    break
                except NotFound as error:
                    if error.collection or not await self._has_started(upload):
                        raise
                    # Another call with the same arguments started the job: what it did not have
                    # goes into another upload.
        start = _requests.start_upload(upload, plan.sent.done, plan.left_out, local.name)
        start = _requests.with_webhook(start, webhook, webhook_secret)
        job = await self._request_through_outage(start)
        return await self.wait(job, progress=progress) if wait else job

    async def _send_images(
        self, upload: UploadOut, plan: FolderUpload, tell: Callable[[Sent], None], *, asks: bool
    ) -> None:
        """Send what the upload and the collection do not have yet."""
        for page in plan.pages():
            ids = [image.id for image in page]
            known = None
            if asks or upload.images:
                known = await self._request_through_outage(_requests.known(upload, ids))
            for batch in plan.batches(page, known):
                await self._add_images(upload, batch, plan)
                tell(plan.sent)
            tell(plan.sent)

    async def _has_started(self, upload: UploadOut) -> bool:
        """Whether an upload has become a job."""
        try:
            await self.job(upload.id)
        except NotFound:
            return False
        return True

    async def _add_images(
        self, upload: UploadOut, images: list[Outgoing], plan: FolderUpload
    ) -> None:
        """Send images in one request, or in several when one is too large for a server."""
        pending = [images]
        while pending:
            batch = pending.pop()
            try:
                await self._request_through_outage(_requests.add_images(upload, batch))
            except ProblemError as error:
                pending += plan.smaller(batch, error)
            else:
                plan.count(batch)

    async def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        *,
        collection: str | None = None,
        state: JobState | Sequence[JobState] | None = None,
    ) -> list[Job]:
        """List jobs, newest first.

        Args:
            limit: jobs to return, 1 to 1,000.
            offset: jobs to skip, 0 to 10,000,000. At most 10,000 for several states, or without
                `collection` for a key that is limited to collections.
            collection: list only jobs of this collection.
            state: list only jobs in this state, or in one of these.

        Returns:
            The jobs.

        Raises:
            InvalidRequest: `limit`, `offset` or `state` is not valid.

        Example:
            running = await client.jobs(collection="photos", state=["queued", "running"])
        """
        return await self._request(_requests.jobs(limit, offset, collection, state))

    async def job(self, job: Job | str) -> Job:
        """Look at a job.

        Args:
            job: the job's id, or the job as it was earlier.

        Returns:
            The job as it is now.

        Raises:
            NotFound: there is no such job.

        Example:
            done = (await client.job(job)).done
        """
        return await self._request(_requests.job(job))

    async def cancel(self, job: Job | str) -> Job:
        """Stop a job. Images that are indexed stay in the collection.

        Args:
            job: the job, or its id.

        Returns:
            The job in state "cancelled". A job that had ended keeps its state, and this is no
            error.

        Raises:
            NotFound: there is no such job.

        Example:
            await client.cancel(job)
        """
        return await self._request(_requests.cancel(job))

    async def retry(self, job: Job | str, *, wait: bool = False, progress: Progress = False) -> Job:
        """Start a job on the images that failed in a job that has ended.

        Sends one request. `wait` adds one for every look at the job.

        Args:
            job: the job whose failures are tried again, or its id.
            wait: return when the new job has ended.
            progress: see `wait`.

        Returns:
            The new job. If an earlier retry of the same job has not ended: that retry.

        Raises:
            InvalidRequest: `progress` is given without `wait`.
            NotFound: there is no such job, or its collection was deleted.
            ProblemError: the job has not ended, nothing failed in it, or its collection was
                deleted and created again since (409).
            JobFailed: with `wait`, the new job failed as a whole.

        Example:
            again = await client.retry(job, wait=True)
        """
        require_wait(wait, progress)
        retry = await self._request(_requests.retry(job))
        return await self.wait(retry, progress=progress) if wait else retry

    async def delete_job(self, job: Job | str) -> None:
        """Delete a job with its failures and uploads. A running job is cancelled first.

        Images that are indexed stay in the collection.

        Args:
            job: the job, or its id.

        Raises:
            NotFound: there is no such job.

        Example:
            await client.delete_job(job)
        """
        await self._request(_requests.delete_job(job))

    async def wait(
        self, job: Job | str, *, progress: Progress = False, every_s: float = 0.3
    ) -> Job:
        """Wait until a job has ended.

        Sends one request for every look at the job. The wait continues while the service does not
        answer, or answers 503, for up to 60 seconds.

        Args:
            job: the job, or its id.
            progress: True shows a progress bar on standard error. A function is called with the
                job at every look.
            every_s: seconds between two looks. The first intervals are shorter, from 0.05 s.

        Returns:
            The job, which has ended as "succeeded", "partial" or "cancelled".

        Raises:
            NotFound: there is no such job.
            JobFailed: the job failed as a whole.
            Unreachable: the service did not answer for more than 60 seconds.

        Example:
            ended = await client.wait(job, progress=True)
        """
        every_s = seconds("every_s", every_s)
        with listening(progress) as listener:
            ended = await self._wait_until_ended(job, listener, every_s)
        if ended.state == "failed":
            raise JobFailed(ended)
        return ended

    async def failures(self, job: Job | str, limit: int = 100, offset: int = 0) -> Failures:
        """List images that failed in a job.

        Args:
            job: the job, or its id.
            limit: failures to return, 1 to 1,000.
            offset: failures to skip, 0 to 10,000,000.

        Returns:
            A page of failures, each with its reason, and `total`, the number of all failures.

        Raises:
            NotFound: there is no such job.
            InvalidRequest: `limit` or `offset` is not valid.

        Example:
            total = (await client.failures(job, limit=1)).total
        """
        return await self._request(_requests.failures(job, limit, offset))

    async def iter_failures(self, job: Job | str) -> AsyncIterator[Failure]:
        """Iterate over all images that failed in a job.

        Sends one request for every 1,000 failures, when the iteration reaches them.

        Args:
            job: the job, or its id.

        Yields:
            Failures, each with its reason.

        Raises:
            NotFound: there is no such job.

        Example:
            async for failure in client.iter_failures(job):
                print(failure.uri, failure.reason)
        """
        for offset in count(0, PAGE):
            page = (await self.failures(job, PAGE, offset)).failures
            for failure in page:
                yield failure
            if len(page) < PAGE:
                return

    async def missing(self, job: Job | str, limit: int = 1_000, cursor: str = "") -> Missing:
        """List images that are gone from the source of a mirror.

        Args:
            job: the job, or its id.
            limit: ids to return, 1 to 1,000.
            cursor: `next` of the page before; "": the first page.

        Returns:
            A page of ids, `next`, and `total`, the number of all such images.

        Raises:
            NotFound: there is no such job.
            InvalidRequest: `limit` or `cursor` is not valid.

        Example:
            total = (await client.missing(job, limit=1)).total
        """
        return await self._request(_requests.missing(job, limit, cursor))

    async def iter_missing(self, job: Job | str) -> AsyncIterator[str]:
        """Iterate over the ids of all images that are gone from the source of a mirror.

        Sends one request for every 1,000 ids, when the iteration reaches them.

        Args:
            job: the job, or its id.

        Yields:
            Ids of images.

        Raises:
            NotFound: there is no such job.

        Example:
            async for image_id in client.iter_missing(job):
                print(image_id)
        """
        cursor: str | None = ""
        while cursor is not None:
            page = await self.missing(job, PAGE, cursor)
            for image_id in page.ids:
                yield image_id
            cursor = page.next

    # Registered sources

    async def register_source(
        self,
        collection: str,
        name: str,
        source: AnySource,
        *,
        interval: float | str | None = None,
        paused: bool | None = None,
        namespace: str = "default",
        label_from_folder: bool = False,
        on_existing: OnExisting = "skip",
        exif: bool = False,
        mirror: bool | Mapping[str, Any] = False,
        webhook: str | None = None,
        webhook_secret: str | None = None,
    ) -> RegisteredSource:
        """Register a source that the service indexes again and again, or replace the one of a name.

        Args:
            collection: the collection that the images go into. It must exist.
            name: the name of the source: letters, digits, ".", "_" and "-", 63 at most.
            source: as for `index`.
            interval: time between the beginnings of two runs: seconds, or a text such as "30s",
                "15m", "1h" or "1d". None: it runs on request (`run_source`) and for events alone.
            paused: whether it starts no run by itself. None: as before, at first not.
            namespace: the part of the collection that the images go into.
            label_from_folder: the name of an image's folder becomes its label.
            on_existing: "skip" leaves an unchanged image as it is, "replace" embeds it again.
            exif: add to the metadata what EXIF says (taken_at, camera, latitude, longitude,
                altitude).
            mirror: as for `index`: True has each run delete images that are gone from the source.
            webhook: address to which the service sends the end of each job (docs/webhooks.md).
            webhook_secret: signs it. Default: the secret of the service.

        Returns:
            The source.

        Raises:
            InvalidRequest: the name, the source or the interval is not valid.
            NotFound: there is no such collection.
            ProblemError: the service may not read the source (403).

        Example:
            await client.register_source("photos", "camera", "s3://photos/camera", interval="15m")
        """
        hook = _requests.require_webhook(webhook, webhook_secret)
        return await self._request(
            _requests.register_source(
                collection,
                name,
                source,
                interval,
                paused,
                namespace,
                label_from_folder,
                on_existing,
                exif,
                mirror,
                hook,
            )
        )

    async def sources(self, collection: str) -> list[RegisteredSource]:
        """List the registered sources of a collection, by name.

        Args:
            collection: the collection.

        Returns:
            The sources, each with its last run, its next run, and why it cannot run.

        Raises:
            NotFound: there is no such collection.

        Example:
            blocked = [source.name for source in await client.sources("photos") if source.problem]
        """
        return await self._request(_requests.sources(collection))

    async def source(self, collection: str, name: str) -> RegisteredSource:
        """Look at a registered source.

        Args:
            collection: the collection.
            name: the name of the source.

        Returns:
            The source, with its last run, its next run, and why it cannot run.

        Raises:
            NotFound: there is no such collection or source.

        Example:
            next_run = (await client.source("photos", "camera")).next_run
        """
        return await self._request(_requests.source(collection, name))

    async def run_source(
        self, collection: str, name: str, *, wait: bool = False, progress: Progress = False
    ) -> Job:
        """Start a run of a registered source now, also when it is paused.

        Args:
            collection: the collection.
            name: the name of the source.
            wait: return when the job has ended.
            progress: see `wait`.

        Returns:
            The job, as it was when it was started or, with `wait`, when it ended.

        Raises:
            NotFound: there is no such collection or source.
            ProblemError: a run is under way (409), or the key that registered the source may not
                run it any more (403), or too many jobs are queued or running (503).
            JobFailed: with `wait`, the job failed as a whole.

        Example:
            job = await client.run_source("photos", "camera", wait=True)
        """
        require_wait(wait, progress)
        job = await self._request(_requests.run_source(collection, name))
        return await self.wait(job, progress=progress) if wait else job

    async def pause_source(self, collection: str, name: str) -> RegisteredSource:
        """Let a registered source start no run by itself. Events wait.

        Args:
            collection: the collection.
            name: the name of the source.

        Returns:
            The source.

        Raises:
            NotFound: there is no such collection or source.

        Example:
            await client.pause_source("photos", "camera")
        """
        return await self._request(_requests.change_source(collection, name, "pause"))

    async def resume_source(self, collection: str, name: str) -> RegisteredSource:
        """Let a paused source start runs again. Runs that were missed are made up by one.

        Args:
            collection: the collection.
            name: the name of the source.

        Returns:
            The source.

        Raises:
            NotFound: there is no such collection or source.

        Example:
            await client.resume_source("photos", "camera")
        """
        return await self._request(_requests.change_source(collection, name, "resume"))

    async def delete_source(self, collection: str, name: str) -> None:
        """Delete a registered source. Its images stay, and a job that is under way goes on.

        Args:
            collection: the collection.
            name: the name of the source.

        Raises:
            NotFound: there is no such collection or source.

        Example:
            await client.delete_source("photos", "camera")
        """
        await self._request(_requests.delete_source(collection, name))

    async def notify_source(self, collection: str, name: str, keys: Sequence[str]) -> EventsAnswer:
        """Tell the service that files of a registered source were created, changed or removed.

        Args:
            collection: the collection.
            name: the name of the source: a folder, a bucket, a manifest or an archive.
            keys: paths or keys relative to the source.

        Returns:
            How many of them are about images of the source. A job looks at these a moment later.

        Raises:
            NotFound: there is no such collection or source.
            InvalidRequest: the source takes no events.
            ProblemError: too many keys wait (503).

        Example:
            await client.notify_source("photos", "camera", ["2024/cat.jpg"])
        """
        return await self._request(_requests.notify_source(collection, name, keys))

    # Searches

    async def search(
        self,
        collection: str = "images",
        *,
        text: str | None = None,
        image: ImageInput | None = None,
        id: str | None = None,
        vector: Numbers | None = None,
        terms: Sequence[Mapping[str, Any]] | None = None,
        top_k: int = 10,
        offset: int = 0,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        group_by: str | None = None,
        group_size: int = 1,
        collapse: float | None = None,
        namespace: str = "default",
        include_values: bool = False,
        include_metadata: bool = True,
        include_size: bool = False,
        exact: bool = False,
    ) -> SearchResult:
        """Find the images that are nearest to a query. docs/search.md explains each argument.

        Args:
            collection: the collection to search.
            text: search by words. Exactly one of `text`, `image`, `id`, `vector`, `terms`.
            image: search by image: a path, URL, bytes, file opened for reading bytes, or Pillow
                image.
            id: search by an image of the collection.
            vector: search by an embedding: as many numbers as the collection's dimension.
            terms: search by a weighted mix: `[{"id": "a.jpg"}, {"text": "night", "weight": -0.5}]`.
                A weight is 1 by default.
            top_k: matches to return, 1 to 1,000. `offset + top_k` is at most 10,000.
            offset: matches to skip.
            filter: metadata filter, as in docs/search.md: `{"label": {"$in": ["cat", "dog"]}}`.
            min_score: leave out matches with a lower score. Not for the metric "euclidean".
            group_by: "label" or another built-in, declared or metadata field. Matches with the
                same value form a group.
            group_size: matches of each group at most.
            collapse: leave out a match whose cosine with a better match is this or more: above 0,
                at most 1.
            namespace: the part of the collection to search.
            include_values: return the embeddings of the matches.
            include_metadata: return metadata.
            include_size: return width and height.
            exact: compare the query with every image instead of using the index. Slow, and for at
                most 100,000 images.

        Returns:
            The matches, nearest first. A higher score is nearer; with the metric "euclidean" a
            lower one is. `timing` says where the service's time went. `truncated` names the limit
            that cut the matches short, if one did. After "answer_bytes", the same search with
            `offset + len(matches)` goes on. `truncated_texts` has the positions of texts that are
            longer than the model reads: only their beginning counts.

        Raises:
            InvalidRequest: not exactly one kind of query is given, an argument is not valid or is
                over a limit of the service, or the collection does not allow the query.
            OSError: the image file cannot be read.
            NotFound: there is no such collection, or no image with this `id`.
            ProblemError: no worker has the model (503).

        Example:
            result = await client.search("photos", text="a dog in the snow", top_k=5)
        """
        query = {"text": text, "image": image, "id": id, "vector": vector, "terms": terms}
        options = {
            "top_k": top_k,
            "offset": offset,
            "filter": filter,
            "min_score": min_score,
            "group_by": group_by,
            "group_size": group_size,
            "collapse": collapse,
            "namespace": namespace,
            "include_values": include_values,
            "include_metadata": include_metadata,
            "include_size": include_size,
            "exact": exact,
        }
        return await self._request(_requests.search(collection, query, options))

    async def search_many(
        self, collection: str, queries: Iterable[Mapping[str, Any]]
    ) -> list[SearchResult | ProblemError]:
        """Run many searches.

        Sends one request for every 64 queries, fewer queries where they hold large images.

        Args:
            collection: the collection to search.
            queries: each a mapping of arguments of `search`.

        Returns:
            One result for each query, in their order. A query that the service refuses has its
            ProblemError in the place of the result. `timing` is that of the query of the same
            request that took longest.

        Raises:
            InvalidRequest: a query has an unknown or wrong argument.
            NotFound: there is no such collection.
            ProblemError: no query of a request can be answered now (503).

        Example:
            results = await client.search_many("photos", [{"text": "a dog"}, {"id": "a.jpg"}])
        """
        answers = [
            await self._request(request) for request in _requests.search_many(collection, queries)
        ]
        return [outcome for batch in answers for outcome in batch]

    async def embed(
        self,
        texts: Sequence[str] | None = None,
        images: Sequence[ImageInput] | None = None,
        *,
        model: str | None = None,
    ) -> list[list[float]]:
        """Embed texts or images without storing anything.

        Sends one request for every 64 items, fewer items where images are large.

        Args:
            texts: the texts. Exactly one of `texts` and `images`.
            images: the images, each as in `search`.
            model: the CLIP model. Default: the service's.

        Returns:
            One embedding for each item, in their order: a list of as many floats as the model's
            dimension, of unit length. A text that is longer than the model reads is a UserWarning:
            only its beginning counts.

        Raises:
            InvalidRequest: not exactly one of `texts` and `images` is given, or an item cannot be
                embedded.
            ProblemError: no worker has the model (503).

        Example:
            (embedding,) = await client.embed(texts=["a dog"])
        """
        answers = [
            await self._request(request) for request in _requests.embed(texts, images, model)
        ]
        return [embedding for batch in answers for embedding in batch]

    # Images

    async def image(
        self,
        collection: str,
        id: str,
        *,
        namespace: str = "default",
        include_values: bool = False,
    ) -> Image:
        """Look at one image.

        Args:
            collection: the image's collection.
            id: the image's id.
            namespace: the image's namespace.
            include_values: return the embedding.

        Returns:
            The image's URI, label, metadata, file size in bytes, and size in pixels.

        Raises:
            NotFound: there is no such collection or image.

        Example:
            image = await client.image("photos", "a.jpg")
        """
        return await self._request(_requests.image(collection, id, namespace, include_values))

    async def delete_image(self, collection: str, id: str, *, namespace: str = "default") -> None:
        """Delete an image from its collection. The file is not touched.

        Args:
            collection: the image's collection.
            id: the image's id.
            namespace: the image's namespace.

        Raises:
            NotFound: there is no such collection or image.

        Example:
            await client.delete_image("photos", "a.jpg")
        """
        await self._request(_requests.delete_image(collection, id, namespace))

    async def thumbnail(self, collection: str, id: str, *, namespace: str = "default") -> bytes:
        """Get the thumbnail of an image. Vectors that were upserted have none.

        Args:
            collection: the image's collection.
            id: the image's id.
            namespace: the image's namespace.

        Returns:
            The bytes of a JPEG file, whose longest side has 256 pixels by default.

        Raises:
            NotFound: there is no such collection, image or thumbnail.

        Example:
            Path("a.thumbnail.jpg").write_bytes(await client.thumbnail("photos", "a.jpg"))
        """
        return await self._request(_requests.thumbnail(collection, id, namespace))

    async def original(self, collection: str, id: str, *, namespace: str = "default") -> bytes:
        """Get the original file of an image: a file or an object that the service may read, a file
        of a tar or zip, or an upload as long as its job exists.

        An image of the web is fetched from its own server, without the API key: a second request.

        Args:
            collection: the collection that the image is in.
            id: the image's id.
            namespace: the part of the collection that the image is in.

        Returns:
            The bytes of the file, as they are now.

        Raises:
            NotFound: there is no such image, it was written as a vector, or its file is not there
                any more. The message says which.
            ProblemError: the API key may not read the file (403).

        Example:
            Path("a.jpg").write_bytes(await client.original("photos", "a.jpg"))
        """
        return await self._request(_requests.original(collection, id, namespace))

    async def preview(self, collection: str, id: str, *, namespace: str = "default") -> bytes:
        """Get a preview of an image, made of its original file.

        Args:
            collection: the collection that the image is in.
            id: the image's id.
            namespace: the part of the collection that the image is in.

        Returns:
            A JPEG with a longest side of at most 1,000 pixels, without EXIF metadata.

        Raises:
            NotFound: there is no such image, or no original that the service has.
            ProblemError: the API key may not read the file (403), or it is too large (413, 422).

        Example:
            Path("a.preview.jpg").write_bytes(await client.preview("photos", "a.jpg"))
        """
        return await self._request(_requests.preview(collection, id, namespace))

    async def upsert(
        self,
        collection: str,
        vectors: Iterable[Mapping[str, Any]],
        *,
        namespace: str = "default",
    ) -> int:
        """Store embeddings of your own.

        Sends one request for every 1,000 vectors, fewer vectors where they are large. When a
        request fails, the vectors of the requests before it are stored.

        Args:
            collection: the collection, which has to exist.
            vectors: `{"id", "values", "label"?, "metadata"?, "uri"?}` each. `values` has as many
                numbers as the collection's dimension. In the metadata, dates and times become text
                in ISO format, and NaN is no value.
            namespace: the part of the collection that the vectors go into.

        Returns:
            How many vectors were stored.

        Raises:
            NotFound: there is no such collection.
            InvalidRequest: a vector has no id or no values, an unknown field, a number that is not
                finite, or another length than the collection's dimension, or an id is twice in one
                request.

        Example:
            await client.upsert("photos", [{"id": "a.jpg", "values": embedding, "label": "cat"}])
        """
        requests = _requests.upsert(collection, vectors, namespace)
        return sum([await self._request(request) for request in requests])

    # Whole collections

    async def count(
        self, collection: str = "images", *, filter: AnyFilter = None, namespace: str = "default"
    ) -> int:
        """Count the images that pass a filter.

        Args:
            collection: the collection.
            filter: metadata filter. Default: all images.
            namespace: the part of the collection to look at.

        Returns:
            The number of images.

        Raises:
            NotFound: there is no such collection.
            InvalidRequest: the filter is not valid.

        Example:
            cats = await client.count("photos", filter={"label": "cat"})
        """
        return await self._request(_requests.count(collection, filter, namespace))

    async def iter_ids(
        self, collection: str = "images", *, namespace: str = "default"
    ) -> AsyncIterator[str]:
        """Iterate over the ids of all images.

        Sends one request for every 10,000 ids, when the iteration reaches them.

        Args:
            collection: the collection.
            namespace: the part of the collection to look at.

        Yields:
            Ids, in no particular order.

        Raises:
            NotFound: there is no such collection.

        Example:
            ids = [id async for id in client.iter_ids("photos")]
        """
        cursor: str | None = ""
        while cursor is not None:
            page = await self._request(_requests.ids(collection, cursor, namespace))
            for image_id in page.ids:
                yield image_id
            cursor = page.next

    async def ordered_ids(
        self,
        collection: str = "images",
        *,
        order_by: str = "id",
        descending: bool = False,
        filter: AnyFilter = None,
        namespace: str = "default",
    ) -> list[str]:
        """List the ids of images in the order of a field: at most 10,000.

        Args:
            collection: the collection.
            order_by: "id", "indexed_at", "label" or another built-in, declared or metadata field.
                Text is compared without regard to case, numbers in it by their value.
            descending: the largest value comes first.
            filter: metadata filter. Default: all images.
            namespace: the part of the collection to look at.

        Returns:
            The ids. Images without a value come last.

        Raises:
            NotFound: there is no such collection.
            ProblemError: the filter is not valid, or more than 10,000 images pass it (422).

        Example:
            newest = (await client.ordered_ids("photos", order_by="taken_at", descending=True))[:10]
        """
        return await self._request(
            _requests.ordered_ids(collection, order_by, descending, filter, namespace)
        )

    async def delete(
        self,
        collection: str = "images",
        *,
        filter: AnyFilter = None,
        namespace: str = "default",
        all: bool = False,
    ) -> int:
        """Delete the images that pass a filter. The collection stays, and so do the files.

        Sends requests until all are deleted. The service works for up to 20 seconds on each.

        Args:
            collection: the collection.
            filter: metadata filter.
            namespace: the part of the collection to delete from.
            all: delete all images of the namespace. Exactly one of `filter` and `all`.

        Returns:
            How many images were deleted.

        Raises:
            NotFound: there is no such collection.
            InvalidRequest: neither or both of `filter` and `all` are given, or the filter is not
                valid. An empty filter counts as none.

        Example:
            deleted = await client.delete("photos", filter={"label": "cat"})
        """
        deleted, more = 0, True
        while more:
            answer = await self._request(_requests.delete(collection, filter, namespace, all))
            deleted, more = deleted + answer.deleted, answer.more
        return deleted

    async def update_images(
        self,
        collection: str,
        images: Iterable[Mapping[str, Any]] | None = None,
        *,
        filter: AnyFilter = None,
        all: bool = False,
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        namespace: str = "default",
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Updated:
        """Change labels and metadata of images, without embedding them again.

        Metadata is merged key by key: other keys stay, and None removes a key. Images that have the
        new values already are not written, so a call that broke off can be repeated.

        Sends one request for every 1,000 images, or requests until all that pass the filter are
        changed. The service works for up to 20 seconds on each.

        Args:
            collection: the collection.
            images: `{"id", "label"?, "metadata"?}` each. A label that is None is removed.
            filter: metadata filter. All images that pass it get `label` and `metadata`.
            all: change all images of the namespace. Exactly one of `images`, `filter` and `all`.
            label: with `filter` or `all`: the new label. "" removes it. Default: it stays.
            metadata: with `filter` or `all`: new values by key.
            namespace: the part of the collection to change.
            dry_run: change nothing, and say how many images there are to change.
            progress: called with the number of images looked at so far.

        Returns:
            `matched`, the number of images that were found, `updated`, the number of those that
            were written, and `missing`, the ids that are not in the collection. The numbers are
            lower ones if the answer to a request was lost and the request was repeated.

        Raises:
            NotFound: there is no such collection.
            InvalidRequest: not exactly one of `images`, `filter` and `all` is given, nothing would
                change, or a value does not fit the image, which is named.

        Example:
            await client.update_images("photos", [{"id": "a.jpg", "metadata": {"year": 2024}}])
            await client.update_images("photos", filter={"label": "chruch"}, label="church")
        """
        total = Updated(matched=0, updated=0, missing=[])
        if images is not None:
            _requests.require_images_alone(filter, all, label, metadata)
            for request in _requests.update_images(collection, images, namespace, dry_run):
                answer = await self._request_through_outage(request)
                total = _requests.added(total, answer)
                if progress:
                    progress(total.matched)
            return total
        after: str | None = ""
        while after is not None:
            request = _requests.update_by_filter(
                collection, filter, namespace, all, label, metadata, dry_run, after
            )
            answer = await self._request_through_outage(request)
            total, after = _requests.added(total, answer), answer.next
            if progress:
                progress(total.matched)
        return total

    async def recall(
        self,
        collection: str = "images",
        *,
        k: int = 10,
        sample: int = 100,
        filter: AnyFilter = None,
        namespace: str = "default",
        seed: int = 0,
    ) -> Recall:
        """Measure recall@k: the share of the k nearest images that the index finds.

        Images of the collection are the queries, and the service compares each with all images.
        The client waits up to 120 seconds for the result.

        Args:
            collection: the collection.
            k: nearest images of each query, 1 to 999.
            sample: images to use as queries, 1 to 256.
            filter: metadata filter of each search.
            namespace: the part of the collection to look at.
            seed: the same seed chooses the same sample.

        Returns:
            `recall`, the mean of all queries from 0 to 1, the number of `queries`, and `worst`,
            the queries with the lowest recall.

        Raises:
            NotFound: there is no such collection.
            InvalidRequest: `k` or `sample` is too large, or fewer than two or more than 100,000
                images pass the filter.

        Example:
            print((await client.recall("photos")).recall)
        """
        return await self._request(_requests.recall(collection, k, sample, filter, namespace, seed))

    async def export_collection(
        self,
        collection: str,
        file: str | Path,
        *,
        overwrite: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """Write a collection to a Parquet file.

        The file appears under its name once it is complete. An export that breaks off leaves no
        file, and is not repeated. The client writes the file in the calling thread.

        Args:
            collection: the collection.
            file: path of the new file.
            overwrite: replace an existing file.
            progress: called with the number of bytes written so far.

        Returns:
            The path of the file.

        Raises:
            FileExistsError: the file exists, and `overwrite` is not set.
            NotFound: there is no such collection.
            Unreachable: the export broke off.

        Example:
            await client.export_collection("photos", "photos.parquet")
        """
        request = _requests.export(collection)
        with new_file(file, overwrite) as out:
            try:
                async with self._http.stream(request.method, request.path) as response:
                    if not response.is_success:
                        await response.aread()
                        request.result(response, self.url)
                    async for chunk in response.aiter_bytes():
                        out.write(chunk)
                        if progress:
                            progress(out.tell())
            except httpx.RequestError as error:
                raise Unreachable(f"the export from {self.url} broke off ({error})") from error
            if not is_complete(out):
                raise Unreachable(f"the export from {self.url} broke off")
        return Path(file).expanduser()

    async def export_images(
        self,
        collection: str,
        target: str | Path,
        *,
        format: Format | None = None,
        filter: AnyFilter = None,
        namespace: str | None = None,
        query: str | Mapping[str, Any] | None = None,
        top_k: int = 1_000,
        shard_size: int = 10_000,
        originals: bool = True,
        overwrite: bool = False,
        restart: bool = False,
        progress: ExportProgress | None = None,
    ) -> Export:
        """Write the images that pass a filter, or the matches of a query, to a file or to shards.

        Sends one request for about 3 MB of embeddings, and for every 1,000 matches of a query. What
        has come is kept in the folder `TARGET.part`: after an error or a stop, a call with the same
        arguments goes on there. The target appears under its name once it is complete. The client
        writes files, and reads originals, in the calling thread.

        Args:
            collection: the collection.
            target: path of the new file (.parquet, .jsonl, .csv), or of the new folder of shards.
            format: "parquet" (needs pyarrow), "manifest" or "webdataset". Default: by the name of
                the target.
            filter: metadata filter. Default: all images.
            namespace: the part of the collection. Default: all, with a query "default".
            query: words to search by, or a mapping with the arguments `text`, `image`, `id`,
                `vector` or `terms` of `search`, and perhaps its `min_score`, `group_by`,
                `group_size`, `collapse` and `exact`.
            top_k: matches of the query at most, 1 to 10,000.
            shard_size: images in one shard at most.
            originals: add the image files to shards, one request for each. An image
                that cannot be read is in `left-out.jsonl` with its reason.
            overwrite: replace an existing target.
            restart: throw away what an unfinished export has kept.
            progress: called with "reading" or "writing", and the number of images so far.

        Returns:
            What was written, and what was left out.

        Raises:
            FileExistsError: the target exists, and `overwrite` is not set.
            ValueError: an argument is not valid, or an unfinished export with other arguments is
                there.
            ImportError: the format is Parquet, and pyarrow is not installed.
            OSError: the target cannot be written.
            NotFound: there is no such collection.
            clipfleet.Error: the collection was deleted and created again meanwhile.

        Example:
            await client.export_images("photos", "cats.parquet", filter={"label": "cat"})
        """
        plan = new_plan(
            await self.collection(collection),
            target,
            target_format=format,
            where=filter,
            namespace=namespace,
            query=query,
            top_k=top_k,
            shard_size=shard_size,
            originals=originals,
        )
        with Spool(plan, overwrite=overwrite, restart=restart) as spool:
            if spool.needs_hits:
                spool.save_hits(*await self._all_matches(plan))
            while (body := spool.next_request()) is not None:
                spool.append(
                    await self._request_through_outage(_requests.rows(plan.collection.name, body))
                )
                if progress:
                    progress("reading", spool.state.rows)
            http = self._connect(httpx.Client)
            with Originals(http, plan.collection.name) as originals_of:
                return write_export(spool, progress, originals_of)

    async def _all_matches(self, plan: ExportPlan) -> tuple[list[tuple[str, float]], str | None]:
        """Ids and scores of the matches of an export's query, and the limit that cut them short."""
        scores: dict[str, float] = {}
        offset, truncated = 0, None
        while offset < plan.top_k:
            limit = min(PAGE, plan.top_k - offset)
            result = await self.search(
                plan.collection.name,
                **(plan.query or {}),
                filter=plan.filter,
                namespace=plan.namespace or "default",
                top_k=limit,
                offset=offset,
                include_metadata=False,
            )
            for match in result.matches:
                scores.setdefault(match.id, match.score)
            offset, truncated = offset + len(result.matches), result.truncated
            goes_on = truncated == "answer_bytes" if truncated else len(result.matches) == limit
            if not result.matches or not goes_on:
                break
        return list(scores.items()), None if truncated == "answer_bytes" else truncated

    async def import_collection(
        self,
        collection: str | None,
        file: str | Path,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Collection:
        """Write an exported Parquet file, or a folder of exported shards, into a collection.

        The embeddings are stored as they are, without a model. Sends one request for every 1,000
        images, fewer images with embeddings of more than 200 numbers, and three more requests. The
        import continues while the service does not answer for up to 60 seconds. Images with the id
        of an existing image replace it. A manifest has no embeddings: `index` reads it.

        Args:
            collection: name or alias of the collection, which is created if it does not exist.
                None: the name in the file.
            file: path of the file or folder. A Parquet file needs pyarrow.
            progress: called with the number of images stored so far, and of all.

        Returns:
            The collection.

        Raises:
            ImportError: pyarrow is not installed.
            FileNotFoundError: there is no such file.
            InvalidRequest: the file is not an export, or is damaged.
            ProblemError: the existing collection has another metric, model, dimension or fields
                (409).

        Example:
            await client.import_collection("photos-2", "photos.parquet")
        """
        path = Path(text("file", file)).expanduser()
        export = ShardsExport(path) if path.is_dir() else ExportFile(path)
        description = export.description
        name = collection or description.name
        settings = (
            description.metric, description.model, description.dim, description.fields
        )  # fmt: skip
        try:
            await self._request(_requests.create_collection(name, *settings))
        except ProblemError as error:
            if "alias" not in error.problem:
                raise
            name = (await self.collection(name)).name
            await self._request(_requests.create_collection(name, *settings))
        done = 0
        for namespace, vectors in export.pieces():
            for request in _requests.upsert(name, vectors, namespace):
                done += await self._request_through_outage(request)
            if progress:
                progress(done, export.rows)
        return await self._request(_requests.collection(name))

    async def fleet(self) -> Fleet:
        """List the workers and planners, and what is wrong with the service.

        Returns:
            The workers and planners that are alive, `work_left`, the number of images of jobs that
            are not indexed yet, and findings, each with advice.

        Raises:
            ProblemError: the API key does not have scope admin (403).

        Example:
            rates = {worker.id: worker.rate for worker in (await client.fleet()).workers}
        """
        return await self._request(_requests.fleet())

    async def _start(
        self,
        request: ApiRequest[Job],
        collection: str,
        wait: bool,
        progress: Progress,
        create: bool,
    ) -> Job:
        if create:
            await self._require_collection(collection, create)
        job = await self._request(request)
        return await self.wait(job, progress=progress) if wait else job

    async def _require_collection(self, name: str, create: bool) -> Collection:
        """The collection, which is created if it does not exist and `create` is set."""
        try:
            return await self.collection(name)
        except NotFound:
            if not create:
                raise
            return await self.create_collection(name)

    async def _wait_until_ended(self, job: Job | str, listener: Listener, every_s: float) -> Job:
        seen_at, intervals_s = time.monotonic(), poll_intervals_s(every_s)
        while True:
            try:
                now = await self.job(job)
            except (Unreachable, ProblemError) as error:
                if not _requests.is_outage(error) or time.monotonic() - seen_at > OUTAGE_S:
                    raise
            else:
                seen_at = time.monotonic()
                listener(now)
                if now.state in ENDED:
                    return now
            await asyncio.sleep(next(intervals_s))

    async def _request_through_outage(self, request: ApiRequest[T]) -> T:
        began = time.monotonic()
        while True:
            try:
                return await self._request(request)
            except (Unreachable, ProblemError) as error:
                if not _requests.is_outage(error) or time.monotonic() - began > OUTAGE_S:
                    raise
            await asyncio.sleep(1.0)

    async def _request(self, request: ApiRequest[T]) -> T:
        for attempt in count():
            outcome = await self._send(request)
            delay_s = retry_delay_s(outcome, attempt, repeatable=request.repeatable)
            if delay_s is None or attempt >= self._retries:
                break
            await asyncio.sleep(delay_s)
        return request.result(outcome, self.url)

    async def _send(self, request: ApiRequest[Any]) -> Outcome:
        try:
            return await self._http.request(request.method, request.path, **request.options())
        except httpx.RequestError as error:
            return error
        finally:
            request.close()
