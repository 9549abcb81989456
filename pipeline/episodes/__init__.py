"""Episodes and their shards: frames, files, names, the index, and the list of skipped episodes."""
