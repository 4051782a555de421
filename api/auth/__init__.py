"""Who may do what: keys, grants, allowed hosts and origins. How often, too. No route is here."""
