"""The processes that work: planner, ingest workers and query workers."""
