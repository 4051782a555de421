"""Routes that start, show, follow and end jobs, and uploads. What a job does is in `workers`."""
