"""Models of HTTP requests and answers. They need only pydantic, since the client uses them too."""
