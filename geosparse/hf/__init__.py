"""Everything that knows transformers: loading, layers, the attention interface and its masks."""
