"""What the paper assumes of heads, A1 to A3: sums, fits, the law that they describe, and the bounds that follow."""
