"""Which channels of a graph must go together when one of them is removed."""
