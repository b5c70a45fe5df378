"""The language-model wing: checkpoints in, files of llama.cpp and vLLM out, block by block."""
