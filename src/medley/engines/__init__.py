"""Heavy work: ordinary torch code that runs what roles ask for."""
