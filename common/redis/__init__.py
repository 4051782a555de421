"""Connections to Redis and to Sentinels. `ledger` and `queue` define what is stored there."""
