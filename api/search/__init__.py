"""Routes that search or embed, and what they check before a worker is asked."""
