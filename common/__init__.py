"""What every package may use: files, locks, process ranks, constants. Imports no torch and no other package here."""
