"""What travels between gateway and workers through Redis: messages, replies, heartbeats."""
