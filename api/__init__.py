"""The HTTP gateway: checks requests, sends work to the workers and returns their answers.

It never reads a source and never runs a model.
"""
