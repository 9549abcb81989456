"""The world model: network, loss, LoRA, and its files."""
