"""Stage 2: episode shards become token shards, by a frozen compressive VQ tokenizer."""
