"""Stage 3: token shards become a world model, and the world model predicts video."""
