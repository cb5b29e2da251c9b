"""The report of a GPU: correctness, training, acting, text and presets, in one command."""
