"""Checkpoints as folders in the compressed-tensors format, which vLLM and transformers load."""

from packlight.llm.schemes.compress import FolderCompressed, compress_folder
from packlight.llm.schemes.folder import plan_folder
from packlight.llm.schemes.table import DEFAULT, SCHEMES, Scheme, find_scheme

__all__ = [
    "DEFAULT",
    "SCHEMES",
    "FolderCompressed",
    "Scheme",
    "compress_folder",
    "find_scheme",
    "plan_folder",
]
