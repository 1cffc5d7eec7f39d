"""The web page and what feeds it; no logic of its own, and no torch in its process."""
