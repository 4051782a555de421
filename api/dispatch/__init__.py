"""Between the routes and the parts: sends work to the workers and waits for their replies.

No route is here.
"""
