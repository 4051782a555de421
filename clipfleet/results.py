"""What the clients answer, under the names users know; the schemas are those of the service."""

from clipfleet.common.collection_schemas import RecallOut as Recall
from clipfleet.common.fleet_schemas import FleetOut as Fleet
from clipfleet.common.schemas import CollectionOut as Collection
from clipfleet.common.schemas import FailureList as Failures
from clipfleet.common.schemas import FailureOut as Failure
from clipfleet.common.schemas import ImageOut as Image
from clipfleet.common.schemas import JobOut as Job
from clipfleet.common.schemas import MatchOut as Match
from clipfleet.common.schemas import SearchOut as SearchResult

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

ENDED = ("succeeded", "partial", "failed", "cancelled")
