"""Stage 2: episode shards become token shards, through a frozen tokenizer."""
