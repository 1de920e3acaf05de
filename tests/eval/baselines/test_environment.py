"""The environment of the baselines."""

from __future__ import annotations

from eval.baselines.environment import PACKAGES, inside


def test_the_environment_pins_what_is_compared() -> None:
    assert not inside()
    assert any(package.startswith("kvpress==") for package in PACKAGES)
    assert any(package.startswith("transformers==") for package in PACKAGES)
