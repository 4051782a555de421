from support.models import tiny
from support.stores import milvus_server

__all__ = ["milvus_server", "tiny"]
