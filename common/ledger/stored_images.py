"""Jobs over images that are stored: they compute on embeddings, and read no image again.

Such a job is planned, claimed and marked as every other job. Its source has the type SOURCE_TYPE,
and names a task of TASKS. `workers/analysis` has the tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from clipfleet.common.collection import Collection
from clipfleet.common.ledger import Item

SOURCE_TYPE = "stored-images"
VERSION: Literal[5] = 5  # of such a `NewJob`: workers of earlier releases leave it alone
ROW = "row:"  # the `read` of an item; its primary key follows
LAST = "last:"  # the same, of the last item of a job with a finishing step
Task = Literal["tags", "duplicates", "map"]


@dataclass(frozen=True)
class Shape:
    """What a planner has to know of a task.

    Attributes:
        rows: the number of images in a chunk.
        finishes: whether it has a finishing step, which begins when all other images are done.
    """

    rows: int = 2_000
    finishes: bool = False


TASKS: Mapping[str, Shape] = {
    "tags": Shape(),
    "duplicates": Shape(finishes=True),
    "map": Shape(finishes=True),
}


def stored_images(
    task: Task,
    parameters: Mapping[str, Any],
    *,
    namespace: str | None = None,
    where: Mapping[str, Any] | None = None,
    rows: int = 0,
) -> dict[str, Any]:
    """The source of a job over stored images.

    Args:
        task: what to compute.
        parameters: what the task needs, as JSON of some kilobytes at most. Longer things belong
            into a blob below `uploads_of` of the job, which is deleted with the job.
        namespace: the namespace of the images; None: all namespaces.
        where: the filter that the images pass, as a request has it; None: all images.
        rows: the number of images in a chunk; 0: as the task's shape has it.
    """
    return {
        "type": SOURCE_TYPE,
        "task": task,
        "parameters": dict(parameters),
        "namespace": namespace,
        "filter": dict(where) if where else None,
        "rows": rows or TASKS[task].rows,
    }


def is_over_stored(source: Mapping[str, Any]) -> bool:
    """Whether the source of a job is the images that are stored."""
    return source.get("type") == SOURCE_TYPE


def shape_of(source: Mapping[str, Any]) -> Shape:
    """The shape of a job's task; that of a task which a later release added is the default."""
    shape = TASKS.get(str(source.get("task")), Shape())
    return replace(shape, rows=int(source.get("rows") or shape.rows))


def results_of(collection: Collection) -> str:
    """The prefix of the keys of all results about a collection in the blob store.

    They are deleted with the collection.
    """
    return f"analysis/{collection.generation}"


def key_of(item: Item) -> str:
    """The primary key of an item; "": it stands for the finishing step alone."""
    return item.read.partition(":")[2]


def is_stored(item: Item) -> bool:
    """Whether the item is an image that is stored."""
    return item.read.startswith((ROW, LAST))


def is_last(item: Item) -> bool:
    """Whether the finishing step belongs to the item."""
    return item.read.startswith(LAST)
