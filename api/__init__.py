"""The gateway: HTTP in, messages out, answers back. It never reads a source or runs a model."""
