"""The report of the quickstart: what its models see, do and say, as one HTML page."""
