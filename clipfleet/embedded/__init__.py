"""The service on one machine: Valkey, milvus-lite and the parts of clipfleet as processes.

What is used on several machines does not belong here.
"""

import os

# gRPC reads it once, when it is loaded. Its fork handlers start threads in a child that is about to
# close every descriptor and exec, and those abort it: 20 of 444 children ended with signal 6.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
