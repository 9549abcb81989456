"""What makes a session fast and reproducible: one KV cache, packed weights, drafts of the next ids, noise per sample."""
