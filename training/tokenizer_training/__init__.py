"""Training the compressive tokenizer: its clips, losses, codebooks, and the loop around them."""
