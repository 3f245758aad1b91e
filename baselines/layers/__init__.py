"""Blocks that three files or more share, one file a thing."""
