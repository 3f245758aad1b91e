"""Token reduction: fewer tokens from block to block, on any isotropic ViT with softmax attention."""
