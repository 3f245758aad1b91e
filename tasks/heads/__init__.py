"""What heads on frozen features are made of: scaling, held-out parts, and the fits themselves."""
