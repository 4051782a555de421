from stores import photos, store

__all__ = ["photos", "store"]
