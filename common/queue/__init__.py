"""Communication of gateway and workers through Redis: messages, replies, announcements.

Jobs and their chunks are in `ledger`.
"""
