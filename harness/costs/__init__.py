"""Costs of a model, one file each."""
