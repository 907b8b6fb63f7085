"""Latency models fitted to published measurements, and how well they predict what they were not fitted to."""
