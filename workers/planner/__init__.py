"""The planner process, which reads sources and plans chunks. `ingest` reads the images."""
