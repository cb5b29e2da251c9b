"""Convert data in parallel and resumably."""
