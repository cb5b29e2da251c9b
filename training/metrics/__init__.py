"""Metrics of a training run: sums on the device, throughput, samples, and writers."""
