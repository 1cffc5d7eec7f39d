"""Answers to people: the OpenAI-compatible front end, what a MODEL is, and how good its answers are."""
