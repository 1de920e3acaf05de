"""The kernels themselves; the only folder that imports triton when it is imported."""
