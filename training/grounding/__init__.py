"""Learn and measure where the objects that instructions name are."""
