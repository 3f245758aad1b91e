"""Readers, one file a layout, and generators of the embedded data."""
