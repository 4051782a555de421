"""What the gateway, the planner and the workers share: ports, messages, records, errors.

It imports neither `api` nor `workers`.
"""
