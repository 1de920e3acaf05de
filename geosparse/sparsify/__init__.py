"""Run: a model and a Plan become the same model, sparse."""
