"""Routes that search or embed, and the checks before a worker is asked."""
