"""What a running model needs besides `attention`, `cache` and `patch`: ways in, dense paths, counts, break-evens."""
