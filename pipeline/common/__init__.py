"""Shared by every stage: errors, storage, shard manifests, JSON and Parquet files, progress lines."""
