"""Routes that start, show, follow and end jobs, and uploads. `workers` does the work of a job."""
