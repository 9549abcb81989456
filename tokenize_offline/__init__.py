"""Stage 2: turns episode shards into token shards with a frozen compressive VQ tokenizer."""
