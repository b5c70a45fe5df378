"""Language models from the outside: what `packlight.compress` does for a checkpoint or a GGUF."""
