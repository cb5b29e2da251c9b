"""Compare ways to decode the text of trained models: quality against speed."""
