"""Drawing image, truth and prediction side by side."""
