"""The scenes A to D of the installed calvin_env: configuration, geometry, and an environment for the experts."""
