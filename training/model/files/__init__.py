"""Reads and writes model folders: transformer, recipe, clips, model card."""
