"""Celery's side of a worker: consumer, thread pool, and what messages of other releases get."""
