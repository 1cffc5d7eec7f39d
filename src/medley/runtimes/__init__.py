"""Hosts for the pure roles: they own the clock, the processes and the sockets, and carry out what a role asks
for.
"""
