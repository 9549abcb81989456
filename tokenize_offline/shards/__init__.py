"""Token shards: schema, writer and codebook statistics."""
