"""The language-model wing: checkpoint folders and GGUF files in, GGUF files out."""
