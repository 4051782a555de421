"""The stack on one machine: Valkey and milvus-lite from their wheels, and our own parts."""
