"""Submissions: a stranger's model, checkpoint, predictions or claim, from the first check to the results folder."""
