"""What every process does when it starts and while it runs: checks, logs and metrics."""
