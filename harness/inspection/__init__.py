"""Looking at a stranger's files without running, unpickling or decoding them, and without leaving their folder."""
