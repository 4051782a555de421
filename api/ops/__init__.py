"""For operators: routes for health, fleet and metrics, the diagnosis, and the access log."""
