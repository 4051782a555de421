"""Image search as a service: index images in bulk, find them by words or by image."""

__version__ = "0.1.0"
