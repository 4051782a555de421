"""The settings of every part, read once from the environment (prefix `CLIPFLEET_`).

Nested settings take two underscores: `CLIPFLEET_LIMITS__IMAGE_BYTES=10000000`.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyNetwork
from pydantic_settings import BaseSettings, SettingsConfigDict

from clipfleet.common.http.source_grants import BucketUrl
from clipfleet.common.http.webhooks import require_secret

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
CARRIED_MODEL = "clipfleet-mini"
ORIGIN = re.compile(r"https?://[a-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?|\*")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")


def _require_origin(text: str) -> str:
    if not ORIGIN.fullmatch(text):
        raise ValueError(
            f"{text!r} is not an origin: a scheme, a host in lower case and maybe a port, and no "
            "path, such as https://app.example.org"
        )
    return text


Origin = Annotated[str, AfterValidator(_require_origin)]
WebhookSecret = Annotated[str, AfterValidator(lambda text: require_secret(text) if text else text)]


class Limits(BaseModel):
    """The limits of the service: what it refuses, and where it stops.

    `docs/limits.md` describes those of the gateway.
    """

    model_config = ConfigDict(frozen=True)

    image_bytes: int = Field(64_000_000, description="Largest image file that is indexed, bytes.")
    image_pixels: int = Field(
        100_000_000, description="Largest image that is indexed, pixels before decoding."
    )
    active_jobs: int = Field(
        1_000,
        description="Jobs that are queued or running; a request for another gets a 503. API keys "
        "share them.",
    )
    copied_bytes: int = Field(
        20_000_000_000,
        description="Largest zip or Parquet file that is copied from the web to be read, bytes.",
    )
    upload_files: int = Field(1_000, description="Files in one request of an upload.")
    uploads: int = Field(
        16, ge=1, description="Uploads at once in one gateway; API keys share them."
    )
    open_uploads: int = Field(
        20,
        ge=1,
        description="Uploads in several requests that are open at once; API keys share them.",
    )
    open_upload_images: int = Field(
        1_000_000, description="Images in one upload in several requests."
    )
    open_upload_bytes: int = Field(
        2_000_000_000_000, description="Files of one upload in several requests, bytes."
    )
    upload_s: float = Field(
        3_600.0, gt=0, description="Longest duration of one request of an upload, seconds."
    )
    request_bytes: int = Field(1_000_000_000, description="Largest body of an upload, bytes.")
    json_bytes: int = Field(
        1_000_000, description="Largest JSON body, not counting the images in it, bytes."
    )
    batch_bytes: int = Field(
        4_000_000,
        description="Largest body of a batch search or an embed request, not counting the images "
        "in it, bytes.",
    )
    job_bytes: int = Field(
        8_000_000, description="Largest body of a request that starts a job, bytes."
    )
    vectors_bytes: int = Field(
        32_000_000, description="Largest body of a request that writes vectors, bytes."
    )
    inline_bytes: int = Field(
        32_000_000,
        description="Images in one search or embed request, bytes of their decoded files.",
    )
    in_hand_bytes: int = Field(
        64_000_000,
        description="Request bodies and answers over 65,536 bytes that one gateway holds in "
        "memory at once, bytes.",
    )
    body_s: float = Field(
        20.0, gt=0, description="Longest wait for a request's body, seconds; see `body_rate`."
    )
    body_rate: int = Field(
        50_000,
        ge=1,
        description="Bytes of a large body that extend `body_s` by one second each time.",
    )
    connections: int = Field(
        2_000,
        ge=1,
        description="Open connections of one gateway; beyond it those are closed whose clients "
        "have kept the gateway waiting for longest.",
    )
    header_s: float = Field(
        10.0, gt=0, description="Longest wait for the header of a request, seconds."
    )
    keep_alive_s: float = Field(
        5.0,
        gt=0,
        description="Time for which a connection without a request stays open after an answer, "
        "seconds.",
    )
    send_s: float = Field(
        30.0,
        gt=0,
        description="Longest time in which a client reads nothing of an answer, and the time by "
        "which it may be behind `send_rate`, seconds.",
    )
    send_rate: int = Field(
        10_000, ge=1, description="Bytes a second that a client must read of a large answer."
    )
    answer_bytes: int = Field(
        32_000_000, description="Matches in one answer, to a search or to a batch of them, bytes."
    )
    text_chars: int = Field(10_000, description="Longest text query, characters.")
    top_k: int = Field(1_000, description="Matches in the answer to one query.")
    values: int = Field(
        500_000,
        description="Numbers in one answer with `include_values`: `top_k` times the dimension.",
    )
    window: int = Field(10_000, description="Largest `offset + top_k` of a search.")
    candidates: int = Field(
        2_000,
        description="Matches that are examined to fill a page with `group_by` or `collapse`.",
    )
    query_terms: int = Field(16, description="Terms of one query.")
    vectors: int = Field(1_000, description="Vectors in one request.")
    metadata_bytes: int = Field(
        32_000, description="Largest metadata of one image, bytes of its JSON."
    )
    embeds: int = Field(
        64,
        description="Texts or images in one request to /v1/embed, and images in one to "
        "/v1/embeddings.",
    )
    embedding_inputs: int = Field(
        2_048, ge=1, description="Texts and images in one request to /v1/embeddings."
    )
    event_streams: int = Field(
        200,
        description="Clients of one gateway that follow the events of jobs at once; API keys share "
        "them.",
    )
    query_batch: int = Field(
        64, description="Queries, or terms of queries, in one message to a worker."
    )
    query_rows: int = Field(
        2_000,
        ge=1,
        description="Matches that the queries in one message to a worker ask for together.",
    )
    query_queue: int = Field(
        1_024,
        description="Queries that wait in one gateway, for each model and kind of query; API keys "
        "share them.",
    )
    source_interval_s: float = Field(
        10.0, gt=0, description="Shortest interval of a registered source, seconds."
    )
    source_events: int = Field(
        200_000, ge=1, description="Keys of events that wait for a run of one registered source."
    )
    exact_rows: int = Field(100_000, description="Images that one exact search compares with.")
    recall_sample: int = Field(256, description="Queries in one measurement of recall.")
    exports: int = Field(
        4, description="Collections that one gateway exports at once; API keys share them."
    )
    originals: int = Field(
        64,
        ge=1,
        description="Original images that one gateway sends at once; API keys share them.",
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        description="Requests per minute of an API key that has no limit of its own; 0: no limit.",
    )
    query_pixels: int = Field(
        25_000_000,
        description="Largest image to search by or to embed, pixels in memory after decoding.",
    )
    query_image_bytes: int = Field(
        256_000, description="Largest query image in a message through Redis, bytes."
    )


class Fetch(BaseModel):
    """How images, manifests and archives are fetched by URL. `docs/urls.md` describes it."""

    model_config = ConfigDict(frozen=True)

    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="JSON list of networks, such as 10.1.0.0/16, that may be fetched from in "
        "addition to public addresses.",
    )
    concurrency: int = Field(
        256,
        ge=1,
        description="Images that one worker reads from the web and from buckets at once.",
    )
    per_host: int = Field(8, ge=1, description="Requests of one process to one host at once.")
    per_bucket: int = Field(
        64, ge=1, description="Images that one worker reads from one bucket at once."
    )
    connect_s: float = Field(
        10.0, gt=0, description="Timeout of the name look-up and of the connection, seconds."
    )
    read_s: float = Field(
        20.0, gt=0, description="Timeout of the wait for the next bytes, seconds."
    )
    total_s: float = Field(60.0, gt=0, description="Timeout of one image with all tries, seconds.")
    tries: int = Field(4, ge=1, description="Tries of one URL, when the failure may be temporary.")
    backoff_s: float = Field(
        0.5,
        ge=0,
        description="Longest wait before the second try, seconds; it doubles with each try.",
    )
    redirects: int = Field(5, ge=0, description="Redirects that are followed from one URL.")
    memory_bytes: int = Field(
        512_000_000,
        gt=0,
        description="Memory of one worker for fetched images over 1 MB that are not indexed yet, "
        "bytes.",
    )
    breaker_timeouts: int = Field(
        8,
        ge=0,
        description="Timeouts in a row after which a server is not asked for `breaker_s`; 0: the "
        "server is always asked.",
    )
    breaker_s: float = Field(
        60.0, gt=0, description="Pause after `breaker_timeouts` timeouts of a server, seconds."
    )
    stream_bytes_s: float = Field(
        1_000.0,
        gt=0,
        description="Lowest average rate of a manifest or an archive, bytes per second.",
    )
    stream_s: float = Field(
        21_600.0,
        gt=0,
        description="Longest total wait for the bytes of one manifest or archive, seconds.",
    )
    query_s: float = Field(
        10.0,
        gt=0,
        description="Timeout of an image to search by or to embed, with all tries, seconds.",
    )
    query_bytes: int = Field(
        32_000_000, description="Largest file of an image to search by or to embed, bytes."
    )
    queries: int = Field(
        8,
        ge=1,
        description="Images to search by or to embed that one gateway fetches at once; API keys "
        "share them.",
    )


class Webhooks(BaseModel):
    """How the ends of jobs are sent. `docs/webhooks.md` describes it."""

    model_config = ConfigDict(frozen=True)

    retry_s: float = Field(
        86_400.0,
        gt=0,
        description="Time after the end of a job for which its webhook is tried again, seconds.",
    )
    pause_s: float = Field(
        5.0,
        gt=0,
        description="Pause before the second try, seconds; each further pause is three times as "
        "long, up to two hours.",
    )
    timeout_s: float = Field(15.0, gt=0, description="Timeout of one try, seconds.")
    at_once: int = Field(
        16, ge=2, description="Webhooks that one planner sends at once; API keys share them."
    )
    per_host: int = Field(
        4, ge=1, description="Webhooks that one planner sends to one host at once."
    )


def carried_model() -> Path:
    """The folder of the small model that is part of the package."""
    return Path(str(files("clipfleet"))) / "models" / CARRIED_MODEL


class Settings(BaseSettings):
    """The settings of the gateway, the planner and the workers.

    Each is an environment variable: `redis_url` is `CLIPFLEET_REDIS_URL`. Tuples are JSON lists.
    """

    model_config = SettingsConfigDict(
        env_prefix="CLIPFLEET_",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # some settings are secrets
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Address of Redis: redis://, rediss:// for TLS, or "
        "redis+sentinel://host,host/service for Sentinels.",
    )
    events_stream: str = Field(
        "",
        description="Name of a stream in Redis from which events about the objects of registered "
        "sources are read; empty: none.",
    )
    redis_ca: str = Field(
        "",
        description="CA certificate (PEM) used to verify the Redis server; empty: the system's.",
    )
    milvus_uri: str = Field(
        "http://127.0.0.1:19530", description="Address of Milvus: http://, or https:// for TLS."
    )
    milvus_token: str = Field("", description="user:password, or an API key, of Milvus.")
    milvus_database: str = Field(
        "", description="Existing database in Milvus; empty: its default database."
    )
    milvus_ca: str = Field(
        "",
        description="CA certificate (PEM) used to verify the Milvus server; empty: those that "
        "gRPC brings.",
    )
    search_ef: int = Field(
        64, ge=1, description="Candidates that a search keeps in Milvus' HNSW index."
    )
    blobs: str = Field(
        "clipfleet-data/blobs",
        description="Folder or bucket for uploads and thumbnails, as an fsspec URL.",
    )
    source_roots: tuple[Path, ...] = Field(
        (), description="JSON list of folders; jobs read local files only below them."
    )
    source_buckets: tuple[BucketUrl, ...] | None = Field(
        None,
        description="JSON list of s3://bucket/prefix; jobs read objects only below them. Unset: "
        "none with API keys or CLIPFLEET_OPEN, else all.",
    )
    private_paths: tuple[Path, ...] = Field(
        (), description="JSON list of files and folders that no job reads."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="JSON list of host names that requests may name; empty: any."
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path below which a reverse proxy serves the gateway, such as /clipfleet; "
        "empty: its root.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        (),
        description="JSON list of origins, such as https://app.example.org, whose pages may use "
        "the HTTP interface from a browser; *: all, with API keys only.",
    )
    keys_file: str = Field(
        "", description="File of API keys; empty: only requests from this machine are answered."
    )
    open: bool = Field(False, description="Without API keys, answer requests from every machine.")
    model: str = Field(
        DEFAULT_MODEL,
        description="Model of this part, and of new collections: a Hugging Face id, a folder, "
        f"hf-hub:OWNER/NAME (of open_clip), {CARRIED_MODEL}, or hash:64 (no model, for tests).",
    )
    device: str = Field("auto", description="Device of a worker: auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = Field(
        "auto",
        description="Number format of the model: auto, float32, bfloat16, float16 (torch) or int8 "
        "(OpenVINO).",
    )
    runtime: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="What computes the embeddings: auto (OpenVINO on a CPU, torch elsewhere), "
        "torch or openvino.",
    )
    model_cache: str = Field(
        "",
        description="Folder of the models that were converted for OpenVINO; empty: "
        "clipfleet/models in the user's cache.",
    )
    feeders: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes of an ingest worker that read and decode images; 0: one for each "
        "core but one.",
    )
    thumbnail_edge: int = Field(
        256, ge=0, le=2_048, description="Longest side of a thumbnail, pixels; 0: no thumbnails."
    )
    embed_batch: int = Field(
        0, description="Images or texts in one forward pass; 0: chosen by the device."
    )
    text_memory: int = Field(
        10_000, ge=0, description="Embeddings of texts that a worker keeps in memory."
    )
    compile: bool = Field(
        False, description="Compile the image tower with torch.compile; for GPUs."
    )
    query_timeout_s: float = Field(15.0, description="Timeout of one search, seconds.")
    exact_timeout_s: float = Field(45.0, description="Timeout of one exact search, seconds.")
    call_timeout_s: float = Field(
        5.0, description="Timeout of one call from the gateway to Redis or Milvus, seconds."
    )
    lease_s: float = Field(
        15.0,
        description="Time after which a worker's claim on a chunk ends, unless renewed, seconds.",
    )
    plan_lease_s: float = Field(
        10.0,
        gt=0,
        description="Time after which a planner's lease of a job ends, unless renewed, seconds.",
    )
    chunk_s: float = Field(
        4.0, description="Time that a worker should need for one chunk, seconds."
    )
    max_attempts: int = Field(
        2, ge=2, description="Attempts at a chunk before it is split in search of the bad image."
    )
    stall_s: float = Field(
        300.0, description="Time without progress after which a worker ends itself, seconds."
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port of /metrics and /healthz of a planner or a worker; 0: none.",
    )
    metrics_host: str = Field("0.0.0.0", description="Address on which metrics_port listens.")
    log: Literal["text", "json"] = Field(
        "text", description="Format of the log on standard error: text, or json."
    )
    retention_days: float = Field(
        30.0,
        ge=0,
        description="Days for which ended jobs, their failures and their uploads are kept; 0: "
        "they are never deleted.",
    )
    keep_uploads: bool = Field(
        False,
        description="Keep uploads, with their jobs, as long as the collection exists, so that a "
        "migration to another model can read them again. They need as much room as the files.",
    )
    limits: Limits = Field(Limits(), description="Limits: CLIPFLEET_LIMITS__NAME.")
    fetch: Fetch = Field(Fetch(), description="Fetching by URL: CLIPFLEET_FETCH__NAME.")
    webhook_secret: WebhookSecret = Field(
        "",
        repr=False,
        description="Secret that signs the webhooks of jobs without a secret of their own; empty: "
        "each such job needs one.",
    )
    webhooks: Webhooks = Field(
        Webhooks(), description="Webhooks of jobs: CLIPFLEET_WEBHOOKS__NAME."
    )
