"""Looking at data sets: any that we read, through one small seam (sources.py), as text, picture sheet and HTML page."""
