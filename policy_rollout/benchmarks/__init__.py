"""Where a policy is judged: each module is one benchmark."""
