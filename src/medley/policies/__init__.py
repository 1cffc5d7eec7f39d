"""Pure choices: a policy looks at a view and returns a decision with its reason.

One choice a file; no clock, no I/O.
"""
