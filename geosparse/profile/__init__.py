"""Measure: a model and texts become a Profile."""
