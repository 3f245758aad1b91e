"""Protocols: how a model becomes what a task measures, one file each."""
