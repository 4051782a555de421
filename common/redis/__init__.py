"""Connections to Redis and Sentinels. What is kept there is in `ledger` and `queue`."""
