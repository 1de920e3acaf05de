"""What a running model needs in addition to `attention`, `cache` and `patch`: ways in, dense paths, counts, break-evens."""
