"""What must survive: the event log, checkpoints and content-addressed artifacts.

Everything here promises "the old or the new, complete" across a kill or a power cut, and says in one sentence
when a disk is full or a file is damaged. It knows bytes and digests; what the bytes mean is for jobs, engines
and roles.
"""
