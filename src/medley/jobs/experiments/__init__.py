"""Experiments: a file that describes a world, the sweep over it, what came out, and the report."""
