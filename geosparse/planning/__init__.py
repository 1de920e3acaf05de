"""What the planner spends and on what: curves of error over N, bytes, growth with the context."""
