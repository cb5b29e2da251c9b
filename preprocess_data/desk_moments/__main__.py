"""`python -m preprocess_data.desk_moments`: write moments of play on the desk."""

from common.command import run_command
from preprocess_data.desk_moments.make import main

if __name__ == "__main__":
    run_command(main)
