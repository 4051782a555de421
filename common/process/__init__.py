"""What every process does when it starts and while it runs: checks, logs and metrics.

What only one kind of process does is in `api` or `workers`.
"""
