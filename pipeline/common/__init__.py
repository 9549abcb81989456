"""What every stage shares: errors, storage, manifests of shards, JSON and Parquet files, progress."""
