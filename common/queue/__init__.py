"""Communication of gateway and workers through Redis: messages, replies, announcements."""
