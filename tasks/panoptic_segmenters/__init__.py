"""Protocols that make a panoptic segmenter of a backbone, one file each."""
