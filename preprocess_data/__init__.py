"""Convert, cache, verify and view data sets; record demonstrations on the embedded desk."""
