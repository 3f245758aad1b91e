"""Protocols that make a detector of a backbone, one file each."""
