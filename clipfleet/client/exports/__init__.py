"""Exports of subsets: Parquet files, manifests and webdataset shards, which go on after a stop.

`spool` keeps what came from the service, in a folder beside the target. A module for each format
writes the target from it. Nothing here sends a request.
"""
