"""Modelled bytes of a decode step."""

from eval.studies.runtime.traffic import step_bytes


def test_modelled_bytes():
    shape = {"visible": 1000, "kv_heads": 3, "key_dim": 64, "value_dim": 64, "itemsize": 4}
    n_keep = [64] * 9
    assert step_bytes(None, n_keep, **shape) == 3 * 1000 * 128 * 4
    rows = 9 * 64 * 256  # bytes of the kept keys, or values
    bounds, codes, rest = 3 * 62 * 256, 3 * 62 * 512, 3 * 8 * 256
    assert step_bytes("topn", n_keep, **shape) == 3 * 1000 * 256 + rows
    assert step_bytes("sink_recent", n_keep, **shape) == 2 * rows
    assert step_bytes("lowbit", n_keep, **shape) == bounds + codes + rest + 2 * rows
    assert step_bytes("paged", n_keep, **shape) == bounds + rest + 2 * rows
    assert step_bytes("paged+lowbit", n_keep, **shape) == bounds + rest + 9 * 16 * 512 + 2 * rows
    everything = [10**6] * 9
    assert step_bytes("topn", everything, **shape) == (3 + 9) * 1000 * 256
