"""A policy behind a WebSocket: two protocols on one port, one forward for everyone who waits (`docs/serving.md`).

bytes --wire--> map --vla_eval | openpi--> Look --session--> Observation --batching--> chunk --session--> action
"""
