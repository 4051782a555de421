"""Indexes a claimed chunk: read, decode, embed, upsert, mark. Planning is in `planner`."""
