"""`python -m eval.studies.planner`: what plans are worth, on text that they were not made from."""
