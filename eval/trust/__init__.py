"""How far the tests and the commands can be trusted: mutants, crashes, load."""
