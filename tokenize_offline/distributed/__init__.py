"""Worker processes that share the shards of one job."""
