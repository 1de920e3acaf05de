"""Other methods beside ours: the same model, text and number of kept tokens, in an environment of their own."""
