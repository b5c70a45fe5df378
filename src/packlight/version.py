"""The version of packlight, in one place."""

__version__ = "0.1.0"
