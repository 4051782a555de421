"""HTTP itself: bodies, forms, connections, problem+json. Nothing here knows images or jobs."""
