"""Pure functions on arrays: no file, no graph, no runtime, and nothing of the house."""
