"""One run of a recipe, whatever its tasks and methods are: profile, plans, samples, result."""
