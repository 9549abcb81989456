"""Token shards as a data set: their rows, the order of samples, batches."""
