"""Questions that were asked of models: their geometry, the planner, and what the runtime keeps true."""
