"""Train and write the small models and data of the project; ``python -m preprocess_data.tiny_assets`` runs them."""
