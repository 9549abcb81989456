"""What a run reports: throughput, lines of metrics, TensorBoard, Weights & Biases."""
