"""Wrappers: built model in, model out, one file each."""
