"""Caches of a sparsified model: growing, offloaded, and the keys of a dense one."""
