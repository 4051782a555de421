"""Routes that search or embed, with their checks. The search itself is in `workers.query`."""
