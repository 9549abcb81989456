"""Stage 1: robot data sets and human video become episode shards."""
