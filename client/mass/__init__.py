"""The Python face of MASS: generated messages live in mass.v1."""
