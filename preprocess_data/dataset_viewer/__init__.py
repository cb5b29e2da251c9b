"""Looking at data sets: any that we read, through one small seam (sources.py), as text, image sheet and HTML page."""
