"""The vocabulary every other room speaks: ids, units, messages, records, effects, errors.

Pure; imports nothing of Medley.
"""
