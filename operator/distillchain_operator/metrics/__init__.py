"""Metrics for Prometheus, and the endpoint that serves them."""
