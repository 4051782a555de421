"""The version of this package. There is no other place where it is written for Python."""

__version__ = "0.1.0"
