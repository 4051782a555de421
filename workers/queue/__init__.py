"""Celery's side of a worker: consumer, thread pool, and messages of other releases.

What a message asks for is done in `ingest` and `query`.
"""
