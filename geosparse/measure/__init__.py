"""What a sparsified model loses and gains: loss, speed, tolerance."""
