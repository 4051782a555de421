"""Reads archives without unpacking them."""
