"""Commands. Each is started as `python scripts/<name>.py` from any folder, or as `python -m scripts.<name>`."""
