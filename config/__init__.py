"""What can be set, and what is set: schema, YAML files, command lines, checks. Imports no torch."""
