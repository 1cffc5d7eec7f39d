"""What a process says about itself: structured logs and numbers. It records; it decides nothing and changes
nothing.
"""
