"""Results of the clients. They are the schemas of the HTTP API under shorter names."""

from clipfleet.common.http.collections import RecallOut as Recall
from clipfleet.common.http.fleet import FleetOut as Fleet
from clipfleet.common.http.schemas import CollectionOut as Collection
from clipfleet.common.http.schemas import FailureList as Failures
from clipfleet.common.http.schemas import FailureOut as Failure
from clipfleet.common.http.schemas import ImageOut as Image
from clipfleet.common.http.schemas import JobOut as Job
from clipfleet.common.http.schemas import MatchOut as Match
from clipfleet.common.http.schemas import SearchOut as SearchResult

__all__ = [
    "Collection",
    "Failure",
    "Failures",
    "Fleet",
    "Image",
    "Job",
    "Match",
    "Recall",
    "SearchResult",
]

# states of a job that has ended
ENDED = ("succeeded", "partial", "failed", "cancelled")
