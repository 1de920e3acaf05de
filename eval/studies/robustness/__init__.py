"""Plans on kinds of text that they have not seen."""
