"""pymilvus, imported without pandas: docs/decisions/0024-private-apis.md.

pymilvus imports pandas for data frames, which clipfleet does not use. It would cost each process
0.2 s of processor time and 67 MB.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

PANDAS = ("pandas", "pandas.api", "pandas.api.types")  # all that pymilvus names


class _Later(ModuleType):
    """Stands for a module that is imported with the first use of one of its names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return _name_of(self.__name__, name)
        return getattr(import_module(self.__name__), name)


def _name_of(module: str, name: str) -> type:
    """A name of the module: good for annotations, and a call of it is a call of the real one."""

    def call(_: type, *args: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*args, **options)

    return type(name, (), {"__new__": call})


@contextmanager
def pandas_later() -> Iterator[None]:
    """Modules that are imported meanwhile get pandas once they use it."""
    if any(name in sys.modules for name in PANDAS):
        yield
        return
    later = {name: _Later(name) for name in PANDAS}
    sys.modules.update(later)
    try:
        yield
    finally:
        for name, module in later.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


with pandas_later():
    from pymilvus import DataType as DataType
    from pymilvus import MilvusClient as MilvusClient
    from pymilvus.client import grpc_handler as grpc_handler
    from pymilvus.client.prepare import Prepare as Prepare
    from pymilvus.exceptions import MilvusException as MilvusException
    from pymilvus.grpc_gen import milvus_pb2 as milvus_pb2
    from pymilvus.grpc_gen import schema_pb2 as schema_pb2
