"""What every package may use: files, locks, process ranks, constants. Imports neither torch nor any other package here."""
