"""The command line: one thin file a command. Nothing here decides anything; it asks, shows, and sets the exit
status.
"""
