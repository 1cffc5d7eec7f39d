"""Which Medley this is: in checkpoints, in answers, in `medley --version`."""

__version__ = "0.1.0"
