"""The server of `clipfleet mcp`: tools for assistants that speak the Model Context Protocol.

It uses the HTTP client alone, and needs the extra `mcp`. docs/guides/assistants.md explains it.
"""
