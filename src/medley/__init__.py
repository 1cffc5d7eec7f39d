"""Medley: train, fine-tune and serve domain language models on the machines a group already has."""

__version__ = "0.1.0"
