"""The images of docs/gallery.md and the page itself."""
