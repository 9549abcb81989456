"""Pre-training of the transformer: set-up, training steps, checkpoints, validation, logs."""
