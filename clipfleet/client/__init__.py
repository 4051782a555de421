"""The HTTP client: `Client`, and `AsyncClient` for asyncio. The command line is in `cli`."""

from clipfleet.client._async import AsyncClient
from clipfleet.client._sync import Client

__all__ = ["AsyncClient", "Client"]
