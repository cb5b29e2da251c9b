"""Record demonstrations on the embedded desk."""
