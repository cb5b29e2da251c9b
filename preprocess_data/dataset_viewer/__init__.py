"""View data sets of every supported format as text, contact sheet and HTML page."""
