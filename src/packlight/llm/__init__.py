"""Language models: checkpoints in, files for their runtimes out, block by block."""
