"""Chooses what to do to which layer, by measuring, under a budget."""
