"""The work of one worker process: read clips, encode them in batches, write token shards."""
