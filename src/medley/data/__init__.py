"""Questions and answers: where they come from, how they are split, ordered, templated and packed.

No torch here.
"""
