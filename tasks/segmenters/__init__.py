"""Protocols that make a segmenter of a backbone, one file each."""
