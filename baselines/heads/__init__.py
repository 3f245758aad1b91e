"""Heads on feature pyramids: pyramid in, model out."""
