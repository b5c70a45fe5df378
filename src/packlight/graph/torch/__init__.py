"""The graph as a PyTorch module. Only this room imports torch, which is an extra (`heal`)."""
