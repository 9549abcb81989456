"""Token shards as training data: their rows, the order of samples, batches."""
