"""What serving a model over several machines has words for: between front and stages, and inside their roles."""
