"""The command lines of predicting, playing, evaluating and training a tokenizer, without torch.

So `--help` and a wrong option answer at once; what a command does is imported when its command line is right.
"""
