"""Studies of the geometry: regimes and what they are good for, envelopes and how often they hold."""
