"""The transport file: a folder as one small file, and back, byte for byte."""

from __future__ import annotations

from packlight.transport.container import Packed
from packlight.transport.folder import Transport, pack, packed_size, unpack

__all__ = ["Packed", "Transport", "pack", "packed_size", "unpack"]
