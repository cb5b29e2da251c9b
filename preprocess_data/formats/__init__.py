"""Read and verify the formats of data sets."""
