"""Authorization: API keys, grants, rate limits, allowed hosts and origins. No route is here."""
