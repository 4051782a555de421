"""From a batch of queries to ranked matches. No HTTP here: the gateway has that."""
