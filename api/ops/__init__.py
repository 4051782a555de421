"""Routes and numbers for operators: health, fleet, diagnosis, metrics, access log."""
