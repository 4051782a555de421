"""Celery's side of a worker: consumer, thread pool, and messages of other releases."""
