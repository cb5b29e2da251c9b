"""Ask a saved model questions about images, print its answers as they grow, and draw how they fill in."""
