"""Job files, and where a person's pools and results live on disk. Opens no connection except to ask."""
