"""A gRPC proxy in front of Milvus that answers upserts itself, without storing anything.

    python benchmarks/upsert_sink.py HOST:PORT LISTEN_PORT

For benchmarks of what comes before the store: the client does all of its work, the server none.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


class Sink(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes calls on as bytes, except for upserts."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, OPTIONS)
        done = milvus_pb2.MutationResult(
            IDs=schema_pb2.IDs(str_id=schema_pb2.StringArray()), succ_index=[], acknowledged=True
        )
        self._done = done.SerializeToString()

    def service(self, call: Any) -> Any:
        if call.method.endswith("/Upsert"):
            return grpc.unary_unary_rpc_method_handler(lambda *_: self._done)
        forward = self._channel.unary_unary(call.method)
        return grpc.unary_unary_rpc_method_handler(lambda request, _: forward(request))


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((Sink(sys.argv[1]),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
