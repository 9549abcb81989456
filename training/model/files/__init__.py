"""A model's folder: its tokenizer, its transformer's files in the published layout, its model card."""
