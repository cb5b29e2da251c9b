"""The pictures of docs/gallery.md and the page itself."""
