"""`python -m eval.planner`: what plans are worth, on text that they were not made from."""
