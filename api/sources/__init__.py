"""Registered sources: their routes, their schedule, and the events that concern them."""
