"""Episodes and their shards: frames, files, names, index, and the list of skipped episodes."""
