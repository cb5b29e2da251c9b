"""A stand-in for calvin_env; see envs/play_table_env.py."""
