"""What one worker process does: read clips, encode them in batches, write token shards."""
