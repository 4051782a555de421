"""Reads the bytes that jobs name: files, URLs, bucket objects, blobs, members of archives.

`common.auth` decides what a job may read.
"""
