"""Where the images of a job come from, as a request says it. Needs pydantic only."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from clipfleet.common.http import uris

MOST_URLS = 10_000
Format = Literal["jsonl", "csv", "parquet", "txt"]


FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "txt",
}


def format_of(uri: str) -> Format | None:
    """By the ending of the name, `.gz` aside."""
    name = uris.name_of(uri).removesuffix(".gz")
    return next((found for end, found in FORMATS.items() if name.endswith(end)), None)


def _readable(uri: str) -> str:
    try:
        match uris.kind(uri):
            case "web":
                return uris.require_web(uri)
            case "bucket":
                return uris.require_bucket(uri)
            case "path":
                uris.local_path(uri)  # it may name another machine
                return uri
    except uris.BadUri as error:
        raise ValueError(str(error)) from error


def _remote(url: str) -> str:
    if uris.kind(_readable(url)) == "path":
        raise ValueError(f"{uris.short(url)} is no URL; a list of paths is a manifest")
    return url


def _bucket(uri: str) -> str:
    if uris.kind(_readable(uri)) != "bucket":
        raise ValueError(f"{uris.short(uri)} is no bucket; one begins with {uris.SCHEMES}")
    return uri


Uri = Annotated[
    str,
    Field(min_length=1, max_length=4_096, description="path, file://, http(s)://, s3://, gs://..."),
    AfterValidator(_readable),
]
Url = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_remote)]
BucketUri = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_bucket)]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FolderSource(_Source):
    """A folder that the workers can read, below the configured roots."""

    type: Literal["folder"] = "folder"
    path: str = Field(min_length=1, max_length=4_096)
    recursive: bool = True
    label_from_folder: bool = Field(False, description="label = name of the image's own folder")


class ManifestSource(_Source):
    """A table with a column `uri`, perhaps `id` and `label`; all other columns are metadata."""

    type: Literal["manifest"] = "manifest"
    uri: Uri
    format: Format | None = Field(None, description="default: by the name's ending")

    @model_validator(mode="after")
    def _known(self) -> "ManifestSource":
        self.table()
        return self

    def table(self) -> Format:
        """ValueError where neither `format` nor the name says it."""
        found = self.format or format_of(self.uri)
        if found is None:
            raise ValueError(
                f"{uris.short(self.uri)} does not end in .jsonl, .csv, .parquet or .txt "
                "(perhaps with .gz): say format"
            )
        return found


class UrlsSource(_Source):
    """Images by URL, which becomes their id. More of them are a manifest."""

    type: Literal["urls"] = "urls"
    urls: Annotated[list[Url], Field(fail_fast=True)] = Field(min_length=1, max_length=MOST_URLS)


class ArchiveSource(_Source):
    """A tar or zip. Beside an image, `.txt` is its caption, `.json` its metadata, `.cls` its
    label, as webdataset has it."""

    type: Literal["archive"] = "archive"
    uri: Uri


class BucketSource(_Source):
    """The images below a prefix of a bucket, which is taken as a folder."""

    type: Literal["bucket"] = "bucket"
    uri: BucketUri
    label_from_folder: bool = Field(False, description="label = name of the image's own folder")


Source = Annotated[
    FolderSource | ManifestSource | UrlsSource | ArchiveSource | BucketSource,
    Field(discriminator="type"),
]

EXAMPLES: list[JsonValue] = [
    {"type": "folder", "path": "/data/photos"},
    {"type": "manifest", "uri": "/data/photos.csv"},
    {"type": "urls", "urls": ["https://example.org/cat.jpg"]},
    {"type": "archive", "uri": "/data/photos.tar"},
    {"type": "bucket", "uri": "s3://photos/2024", "label_from_folder": True},
]
