"""What the gateway, the planner and the workers share: ports, messages, records, errors."""
