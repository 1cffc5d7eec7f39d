"""How bytes travel between processes and machines, and how a peer proves who it is."""
