"""Answers batches of queries with ranked matches. HTTP is the gateway's task."""
