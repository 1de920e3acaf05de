"""Memory of this process."""

from eval.benchmarks.process_memory import peak_bytes, resident_bytes


def test_the_peak_is_at_least_what_is_resident():
    assert 0 < resident_bytes() <= peak_bytes()
