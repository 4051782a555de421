from models import tiny

__all__ = ["tiny"]
