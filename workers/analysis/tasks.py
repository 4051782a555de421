"""The tasks over stored images by name."""

from collections.abc import Mapping

from clipfleet.workers.analysis.map import Map
from clipfleet.workers.analysis.tags import Tags
from clipfleet.workers.analysis.task import Task

IMPLEMENTED: Mapping[str, Task] = {"map": Map(), "tags": Tags()}
