"""The report of the quickstart as one HTML page: films, predicted frames, answers and next steps."""
