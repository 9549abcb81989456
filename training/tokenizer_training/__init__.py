"""Trains the compressive tokenizer: clips, losses, codebooks and the training loop."""
