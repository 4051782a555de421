"""Training of clipfleet-mini: scripts that make the carried dual encoder from scratch."""

import clipfleet.workers.embedding.libraries  # noqa: F401  before other imports of transformers
