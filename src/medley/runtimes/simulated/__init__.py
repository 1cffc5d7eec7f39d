"""The simulated runtime: the roles of production under a virtual clock, with modelled engines, links and faults."""
