"""What a running model needs beside `attention`, `cache` and `patch`: ways in, dense paths, counts, break-evens."""
