"""Training of clipfleet-mini: scripts that make the carried dual encoder from scratch."""
