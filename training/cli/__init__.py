"""Command line parsers of predict, play, evaluate and train-tokenizer.

They import no torch, so `--help` and a wrong option answer at once. The command itself is imported after parsing.
"""
