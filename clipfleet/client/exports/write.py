"""Writes the target of an export, once all rows are here."""

from clipfleet.client.exports.manifest import write_manifest
from clipfleet.client.exports.originals import Originals, has_own_address
from clipfleet.client.exports.parquet import write_parquet
from clipfleet.client.exports.plan import Progress
from clipfleet.client.exports.shards import write_shards
from clipfleet.client.exports.spool import Spool, written_name
from clipfleet.results import Export


def write_export(spool: Spool, progress: Progress | None, originals: Originals) -> Export:
    """Write the target and give it its name.

    Args:
        spool: all rows.
        progress: told how many rows are written.
        originals: reads the images of shards.

    Returns:
        What was written.

    Raises:
        ValueError: the format cannot hold the rows.
        OSError: the target cannot be written.
    """
    path = spool.folder / written_name(spool.plan)
    if spool.plan.format == "webdataset":
        write_shards(spool, path, progress, originals)
    elif spool.plan.format == "parquet":
        write_parquet(spool, path, progress)
    else:
        write_manifest(spool, path, progress)
    state, written = spool.state, spool.state.writing
    not_indexable = _not_indexable(spool) if spool.plan.format == "manifest" else 0
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    spool.publish(path)
    return Export(
        path=str(spool.plan.target),
        format=spool.plan.format,
        images=state.rows - written.left_out,
        bytes=size,
        shards=len(written.shards) if spool.plan.format == "webdataset" else None,
        left_out=written.left_out,
        reasons=written.reasons,
        not_indexable=not_indexable,
        gone=state.gone,
        truncated=state.truncated,
    )


def _not_indexable(spool: Spool) -> int:
    """How many images have no address that `clipfleet index` could read."""
    return sum(not has_own_address(row["uri"]) for _, row in spool.rows())
