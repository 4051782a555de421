"""Finds, opens and reads the original files of images that are in a collection."""
