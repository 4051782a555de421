from models import tiny
from stores import milvus_server

__all__ = ["milvus_server", "tiny"]
