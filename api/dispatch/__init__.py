"""What stands between the routes and the parts: it sends work to workers and waits for replies. No
route is here."""
