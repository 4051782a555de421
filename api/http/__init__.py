"""HTTP itself: bodies, forms, connections, problem+json. Nothing here knows of images or jobs."""
