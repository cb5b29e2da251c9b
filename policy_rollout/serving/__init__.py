"""Serve a policy over WebSockets: two protocols on one port, batched forwards (`docs/serving.md`).

bytes --wire--> map --vla_eval | openpi--> Request --session--> Observation --batching--> chunk --session--> action
"""
