"""The planner process: it reads sources and plans chunks. Reading images is in `ingest`."""
