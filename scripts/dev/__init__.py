"""Tools for developers: the build backend, the requirements files, a Slurm cluster on one machine."""
