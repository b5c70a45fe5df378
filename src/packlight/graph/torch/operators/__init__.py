"""Operators as plain functions: inputs by position, attributes by keyword, one family a file."""
