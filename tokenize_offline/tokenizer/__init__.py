"""The compressive VQ tokenizer."""
