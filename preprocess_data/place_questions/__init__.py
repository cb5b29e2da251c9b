"""Questions about places on the desk, with answers in words of a grid."""
