"""Studies of the runtime: what its selectors cost in quality, and whether its index drifts."""
