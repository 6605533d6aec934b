"""Logs runs to TensorBoard, MLflow and Weights & Biases, each by its own client in a process of its own."""
