"""Shared parts of all benchmarks: timing, memory, command line and results, and the problems that are measured."""
