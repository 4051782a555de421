"""Models of requests and answers about sources that are registered with a collection."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from clipfleet.common.http.schemas import JobIn

Cause = Literal["schedule", "request", "events"]
SourceState = Literal["idle", "scheduled", "due", "running", "paused", "blocked"]

UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
MAX_INTERVAL_S = 366 * 86_400
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_INTERVAL = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([smhdw]?)")


def _seconds(value: Any) -> Any:
    """Seconds, from a number or from a text such as "15m"."""
    if not isinstance(value, str):
        return value
    match = _INTERVAL.fullmatch(value.strip().lower())
    if not match:
        raise ValueError('an interval is seconds, or a text such as "30s", "15m", "1h" or "1d"')
    return float(match[1]) * UNITS[match[2]]


Interval = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(gt=0, le=MAX_INTERVAL_S, allow_inf_nan=False),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_INTERVAL_S},
                {"type": "string", "pattern": f"^{_INTERVAL.pattern}$"},
            ]
        }
    ),
]


class SourceIn(JobIn):
    """A request to register a source: that of a job, and when the job is to run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"source": {"type": "bucket", "uri": "s3://photos/2024"}, "interval": "15m"}
            ]
        }
    )

    interval: Interval | None = Field(
        None,
        description='Time between the beginnings of two runs: seconds, or "30s", "15m", "1h", '
        '"1d"; null: no schedule, so that it runs on request and for events alone.',
        json_schema_extra={"examples": ["15m"]},
    )
    paused: bool | None = Field(
        None, description="Whether it starts no run by itself; absent: as before, at first false."
    )


class RunOut(BaseModel):
    """A run of a source."""

    job: str = Field(description="Id of its job.")
    cause: Cause = Field(description="Why it was started: schedule, request or events.")
    began_at: float = Field(description="When it began, unix time in seconds.")
    state: str | None = Field(description="How the job ended, or deleted; null: it is under way.")
    ended_at: float | None = Field(description="When that was noticed; null before.")
    error: str | None = Field(description="Why it failed or was cancelled; null otherwise.")


class SourceOut(BaseModel):
    """A registered source."""

    name: str = Field(description="Name of the source.")
    collection: str = Field(description="Name of its collection.")
    source: str = Field(
        description="Where its images come from: a path, or an address without its user and query."
    )
    job: dict[str, Any] = Field(
        description="The request of its jobs, without secrets, and without users and queries of "
        "addresses."
    )
    interval: float | None = Field(
        description="Seconds between the beginnings of two runs; null: it has no schedule."
    )
    paused: bool = Field(description="Whether it starts no run by itself.")
    key: str | None = Field(
        description="Name of the API key that registered it, whose rights its jobs have; null: "
        "the service had no keys."
    )
    state: SourceState = Field(
        description="idle (no schedule, and no events wait), scheduled, due, running, paused, or "
        "blocked: `problem` says why it cannot run."
    )
    problem: str | None = Field(description="Why it cannot run now; null: it can.")
    next_run: float | None = Field(
        description="When the next run is due, unix time in seconds; null: it has no schedule, or "
        "is paused."
    )
    running: RunOut | None = Field(description="The run that is under way; null: none.")
    last_run: RunOut | None = Field(description="The last run that has ended; null: none.")
    waiting_keys: int = Field(description="Keys of events that wait for a run.")
    created_at: float = Field(description="When it was registered, unix time in seconds.")


class SourceList(BaseModel):
    """The sources of a collection."""

    sources: list[SourceOut] = Field(description="The sources, sorted by name.")


class EventsOut(BaseModel):
    """What became of events."""

    accepted: int = Field(description="Events whose keys wait for a run now.")
    ignored: int = Field(
        description="Events that are not about images of this source: another bucket or prefix, "
        "another kind of event, or a file that is no image."
    )
    waiting_keys: int = Field(description="Keys that wait for a run of this source.")
