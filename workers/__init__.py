"""The processes that work: planner, ingest workers and query workers. HTTP is in `api`."""
