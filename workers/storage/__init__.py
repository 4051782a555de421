"""Bytes that jobs name: files, the web, buckets, our blob store, members of archives."""
