"""The stack on one machine: Valkey and milvus-lite from their wheels, and our own parts."""

import os

# Read once, when gRPC is loaded. Its fork handlers start threads in a child that is about to close
# every descriptor and exec, and those abort it: 20 of 444 children ended with signal 6.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
