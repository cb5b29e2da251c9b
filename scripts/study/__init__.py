"""What learning to speak by ar, mdm, bd or joint does to seeing and acting; ``python -m scripts.study`` runs it."""
