"""Bugs that were planted on purpose: small changes of roles and policies, each of which the checkers must find."""
