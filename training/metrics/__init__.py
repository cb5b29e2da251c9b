"""Metrics of a training run: sums on the device, throughput, and writers."""
