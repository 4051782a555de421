"""For operators: routes for health, fleet and metrics, the diagnosis, and the access log.

Metrics of workers and planners are in `workers.metrics`.
"""
