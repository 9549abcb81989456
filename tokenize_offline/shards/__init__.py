"""Token shards: their schema, their writer, and the use of the codebooks."""
