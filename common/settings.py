"""Every setting of every part, read once from the environment (prefix `CLIPFLEET_`).

Nested settings take two underscores: `CLIPFLEET_LIMITS__IMAGE_BYTES=10000000`.
"""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork
from pydantic_settings import BaseSettings, SettingsConfigDict

from clipfleet.common.http.source_grants import BucketUrl

DEFAULT_MODEL = "openai/clip-vit-base-patch32"
CARRIED_MODEL = "clipfleet-mini"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")


class Limits(BaseModel):
    """What the service refuses, and where it stops. The one place for such numbers."""

    model_config = ConfigDict(frozen=True)

    image_bytes: int = Field(64_000_000, description="largest image file, bytes")
    image_pixels: int = Field(100_000_000, description="largest image, pixels before decoding")
    active_jobs: int = Field(1_000, description="jobs queued or running; more are told to wait")
    copied_bytes: int = Field(
        20_000_000_000, description="a zip or Parquet file that is copied from the web, bytes"
    )
    upload_files: int = Field(1_000, description="files in one upload")
    uploads: int = Field(16, ge=1, description="uploads at once, per gateway; half of one key")
    upload_s: float = Field(3_600.0, gt=0, description="one upload, seconds")
    request_bytes: int = Field(1_000_000_000, description="one upload request, bytes")
    json_bytes: int = Field(1_000_000, description="one JSON request beside its images, bytes")
    batch_bytes: int = Field(
        4_000_000, description="a batch of searches, or of items to embed; likewise"
    )
    job_bytes: int = Field(8_000_000, description="one request that starts a job, bytes")
    vectors_bytes: int = Field(32_000_000, description="one request with own vectors, bytes")
    inline_bytes: int = Field(
        32_000_000, description="images in one search or embed request, bytes of the files"
    )
    in_hand_bytes: int = Field(
        64_000_000, description="large bodies and answers that one gateway holds at once, bytes"
    )
    body_s: float = Field(20.0, gt=0, description="a request's body, beside body_rate; seconds")
    body_rate: int = Field(50_000, ge=1, description="a large body, bytes a second at least")
    connections: int = Field(2_000, ge=1, description="open at once, per gateway; idle ones close")
    header_s: float = Field(10.0, gt=0, description="a request's headers, seconds")
    send_s: float = Field(30.0, gt=0, description="a client that reads nothing, seconds")
    answer_bytes: int = Field(
        32_000_000, description="matches of one search, or of one batch of them, bytes"
    )
    text_chars: int = Field(10_000, description="a text query, characters")
    top_k: int = Field(1_000, description="matches in one answer")
    values: int = Field(500_000, description="numbers in one answer: top_k x dim with values")
    window: int = Field(10_000, description="offset + top_k of a search")
    candidates: int = Field(
        2_000, description="matches looked at to fill a page with group_by or collapse"
    )
    query_terms: int = Field(16, description="terms of one query")
    vectors: int = Field(1_000, description="own vectors in one request")
    metadata_bytes: int = Field(32_000, description="metadata of one image as JSON, bytes")
    embeds: int = Field(64, description="texts or images in one request for embeddings")
    event_streams: int = Field(200, description="followers of jobs' events, per gateway")
    query_batch: int = Field(64, description="queries in one message, or terms of them")
    query_rows: int = Field(
        2_000, ge=1, description="matches asked for by the queries in one message"
    )
    query_queue: int = Field(1_024, description="queries waiting in one gateway, per lane")
    exact_rows: int = Field(100_000, description="images that an exact search compares with")
    recall_sample: int = Field(256, description="queries in one measurement of recall")
    exports: int = Field(4, description="collections exported at once, per gateway")
    requests_per_minute: int = Field(
        0, ge=0, description="of each key that says nothing else; 0: no limit"
    )
    query_pixels: int = Field(
        25_000_000, description="an image to search by or to embed, pixels in memory"
    )
    query_image_bytes: int = Field(256_000, description="a query image on its way through Redis")


class Fetch(BaseModel):
    """What is fetched by URL, and how patiently. docs/urls.md says it for users."""

    model_config = ConfigDict(frozen=True)

    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), description="JSON list, 10.1.0.0/16: fetched from beside public addresses"
    )
    concurrency: int = Field(
        256, ge=1, description="images from the web and from buckets at once, per worker"
    )
    per_host: int = Field(8, ge=1, description="requests at once to one host, from one process")
    per_bucket: int = Field(64, ge=1, description="images at once from one bucket, per worker")
    connect_s: float = Field(10.0, gt=0, description="look-up and connection")
    read_s: float = Field(20.0, gt=0, description="waiting for the next bytes")
    total_s: float = Field(60.0, gt=0, description="one image, all tries together")
    tries: int = Field(4, ge=1, description="of one URL, when a later one may go better")
    backoff_s: float = Field(0.5, ge=0, description="most before the second try; then doubled")
    redirects: int = Field(5, ge=0, description="followed from one URL")
    memory_bytes: int = Field(
        512_000_000, gt=0, description="images over 1 MB that a worker reads at once, all together"
    )
    breaker_timeouts: int = Field(
        8,
        ge=0,
        description="time-outs in a row before a server is left alone; 0: never",
    )
    breaker_s: float = Field(60.0, gt=0, description="how long a server is left alone")
    stream_bytes_s: float = Field(
        1_000.0, gt=0, description="bytes a second that a manifest or an archive must come with"
    )
    stream_s: float = Field(
        21_600.0, gt=0, description="waiting for one manifest or archive, all in all"
    )
    query_s: float = Field(10.0, gt=0, description="total_s of an image to search by or to embed")
    query_bytes: int = Field(32_000_000, description="largest image to search by or to embed")
    queries: int = Field(8, ge=1, description="such images fetched at once by one gateway")


def carried_model() -> Path:
    """The folder of the small model that travels with the code."""
    return Path(str(files("clipfleet"))) / "models" / CARRIED_MODEL


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="CLIPFLEET_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="rediss:// is TLS; redis+sentinel://host,host/service asks Sentinels",
    )
    redis_ca: str = Field("", description="file with the certificate of who signed Redis' own")
    milvus_uri: str = "http://127.0.0.1:19530"
    milvus_token: str = Field("", description="user:password, or an API key")
    milvus_database: str = Field("", description="of that Milvus; empty: its default one")
    milvus_ca: str = Field("", description="file with the certificate of who signed Milvus' own")
    search_ef: int = Field(64, ge=1, description="candidates a search keeps in Milvus' HNSW index")
    blobs: str = Field("clipfleet-data/blobs", description="folder or bucket, as fsspec writes it")
    source_roots: tuple[Path, ...] = Field(
        (), description="JSON list of folders; local files that jobs read lie below"
    )
    source_buckets: tuple[BucketUrl, ...] | None = Field(
        None,
        description="JSON list, s3://bucket/prefix; objects that jobs read lie below. Unset: none "
        "with keys or CLIPFLEET_OPEN, else all",
    )
    private_paths: tuple[Path, ...] = Field(
        (), description="JSON list of files and folders that jobs never read"
    )
    allowed_hosts: tuple[str, ...] = Field((), description="JSON list of host names; empty: any")
    keys_file: str = Field("", description="API keys; empty: only this machine is answered")
    open: bool = Field(False, description="without keys, answer everybody who gets here")
    model: str = Field(
        DEFAULT_MODEL,
        description=f"hub id, folder, {CARRIED_MODEL}, or hash:64 (no model, for tests)",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: str = Field("auto", description="auto, float32, bfloat16, float16")
    decode_threads: int = 4
    thumbnail_edge: int = Field(256, ge=0, le=2_048, description="longest side, pixels; 0: none")
    embed_batch: int = Field(0, description="items in a forward pass; 0: by device")
    text_memory: int = Field(10_000, ge=0, description="text embeddings that a worker keeps")
    compile: bool = Field(False, description="torch.compile the image tower; for GPUs")
    query_timeout_s: float = 15.0
    exact_timeout_s: float = Field(45.0, description="one exact search")
    call_timeout_s: float = Field(5.0, description="one call to Redis or Milvus from the gateway")
    lease_s: float = Field(15.0, description="a claim on a chunk, unless renewed")
    plan_lease_s: float = Field(
        10.0, gt=0, description="a planner's claim on a job, unless renewed"
    )
    chunk_s: float = Field(4.0, description="how long a chunk should take a worker")
    max_attempts: int = Field(2, ge=2, description="tries of a chunk before it is taken apart")
    stall_s: float = Field(300.0, description="a worker without progress for so long ends itself")
    metrics_port: int = Field(
        0, ge=0, le=65_535, description="/metrics and /healthz of a planner or worker; 0: off"
    )
    metrics_host: str = Field("0.0.0.0", description="address of metrics_port")
    log: Literal["text", "json"] = "text"
    retention_days: float = Field(
        30.0,
        ge=0,
        description="how long ended jobs, failures and uploads stay; 0: for ever",
    )
    limits: Limits = Limits()
    fetch: Fetch = Fetch()
