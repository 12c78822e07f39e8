"""The configuration of a run: sections of YAML, each value checked where it is declared. Imports no torch."""
