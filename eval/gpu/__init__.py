"""What a GPU shows: correctness first, then kernels, whole models and what a profile costs."""
