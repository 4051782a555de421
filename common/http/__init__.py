"""What travels over HTTP, as pydantic models: the client shares it, so nothing here needs more."""
