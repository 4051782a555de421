"""Models of the sources of a job: where its images come from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from clipfleet.common.http import uris
from clipfleet.common.http.patterns import Pattern
from clipfleet.common.http.request import Request

MAX_URLS = 10_000
MAX_SOURCES = 10_000  # of one list
Format = Literal["jsonl", "csv", "parquet", "txt"]


FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "txt",
}


def format_of(uri: str) -> Format | None:
    """The format of a manifest by the end of its name, without `.gz`; None when it is unknown."""
    name = uris.name_of(uri).removesuffix(".gz")
    return next((table_format for end, table_format in FORMATS.items() if name.endswith(end)), None)


def _readable(uri: str) -> str:
    try:
        match uris.kind(uri):
            case "web":
                return uris.require_web(uri)
            case "bucket":
                return uris.require_bucket(uri)
            case "path":
                uris.local_path(uri)  # raises when it names another machine
                return uri
    except uris.BadUri as error:
        raise ValueError(str(error)) from error


def _pattern(path: str) -> str:
    Pattern(path)  # raises for braces with too many values
    return path


def _remote(url: str) -> str:
    if uris.kind(_readable(url)) == "path":
        raise ValueError(f"{uris.short(url)} is not a URL; for a list of paths, use a manifest")
    return url


def _bucket(uri: str) -> str:
    if uris.kind(_readable(uri)) != "bucket":
        raise ValueError(f"{uris.short(uri)} is not a bucket; it must begin with {uris.SCHEMES}")
    return uri


Uri = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4_096,
        description="A path, or an address that begins with file://, http(s)://, s3://, gs://, "
        "...; or a pattern of several: {000..999}, {a,b}, and except on the web *, ?, [...] and "
        "**.",
    ),
    AfterValidator(_readable),
    AfterValidator(_pattern),
]
Url = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_remote)]
BucketUri = Annotated[
    str,
    Field(min_length=1, max_length=4_096),
    AfterValidator(_bucket),
    AfterValidator(_pattern),
]


class FolderSource(Request):
    """The images in a folder that the workers can read, below the configured roots."""

    type: Literal["folder"] = "folder"
    path: Annotated[str, AfterValidator(_pattern)] = Field(
        min_length=1,
        max_length=4_096,
        description="Absolute path of the folder, or a pattern of folders and images: {01..12}, "
        "{a,b}, *, ?, [...] and **.",
    )
    recursive: bool = Field(True, description="Include the folders in it.")
    label_from_folder: bool = Field(
        False, description="Use the name of the folder of each image as its label."
    )


class ManifestSource(Request):
    """The images in a table with a column `uri`. The columns `id` and `label` are optional; all
    other columns are metadata."""

    type: Literal["manifest"] = "manifest"
    uri: Uri
    format: Format | None = Field(
        None, description="Format of the table; absent: by the end of its name."
    )

    @model_validator(mode="after")
    def _known(self) -> "ManifestSource":
        self.table()
        return self

    def table(self) -> Format:
        """The format of the table. ValueError when neither `format` nor the name tells it."""
        table_format = self.format or format_of(self.uri)
        if table_format is None:
            raise ValueError(
                f"{uris.short(self.uri)} does not end in .jsonl, .csv, .parquet or .txt "
                "(or one of them with .gz); set format"
            )
        return table_format


class UrlsSource(Request):
    """Images by URL. The URL of an image is its id. For more URLs, use a manifest."""

    type: Literal["urls"] = "urls"
    urls: Annotated[list[Url], Field(fail_fast=True)] = Field(
        min_length=1, max_length=MAX_URLS, description="URLs of the images."
    )


class ArchiveSource(Request):
    """The images in a tar or zip file. As in webdataset, the files `NAME.txt`, `NAME.json` and
    `NAME.cls` are the caption, the metadata and the label of the image `NAME`."""

    type: Literal["archive"] = "archive"
    uri: Uri
    label_from_folder: bool = Field(
        False,
        description="Use the name of the folder of each image as its label, unless it has one.",
    )


class BucketSource(Request):
    """The images below a prefix of a bucket. The prefix is read like a folder."""

    type: Literal["bucket"] = "bucket"
    uri: BucketUri = Field(description="The bucket and the prefix, such as s3://bucket/prefix.")
    label_from_folder: bool = Field(
        False, description="Use the name of the folder of each image as its label."
    )


OneSource = FolderSource | ManifestSource | UrlsSource | ArchiveSource | BucketSource


class ListSource(Request):
    """Several sources as one job. A source that cannot be read fails as one image with its name."""

    type: Literal["list"] = "list"
    sources: Annotated[
        list[Annotated[OneSource, Field(discriminator="type")]], Field(fail_fast=True)
    ] = Field(min_length=1, max_length=MAX_SOURCES, description="The sources, in their order.")

    @field_validator("sources", mode="before")
    @classmethod
    def _have_types(cls, sources: Any) -> Any:
        for source in sources if isinstance(sources, list) else ():
            if isinstance(source, dict) and "type" not in source:
                raise ValueError(
                    "each source needs a type: folder, manifest, urls, archive or bucket"
                )
        return sources


Source = Annotated[
    FolderSource | ManifestSource | UrlsSource | ArchiveSource | BucketSource | ListSource,
    Field(discriminator="type"),
]

EXAMPLES: list[JsonValue] = [
    {"type": "folder", "path": "/data/photos"},
    {"type": "manifest", "uri": "/data/photos.csv"},
    {"type": "urls", "urls": ["https://example.org/cat.jpg"]},
    {"type": "archive", "uri": "/data/photos.tar"},
    {"type": "bucket", "uri": "s3://photos/2024", "label_from_folder": True},
    {"type": "archive", "uri": "/data/shards/{000..999}.tar"},
    {
        "type": "list",
        "sources": [{"type": "folder", "path": "/data/a"}, {"type": "folder", "path": "/data/b"}],
    },
]
