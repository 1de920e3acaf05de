"""What things cost: calls of the CPU kernels, memory, scoring, a profile, and other engines."""
