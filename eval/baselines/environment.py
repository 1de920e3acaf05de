"""The virtual environment of the baselines, built on first use: they need an older transformers than geosparse does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from geosparse.errors import GeosparseError

from ..harness.checkout import ROOT

ENVIRONMENT_FOLDER = Path(os.environ.get("GEOSPARSE_PEERS", ROOT / ".venv" / "peers"))
# geosparse itself comes from this checkout; gguf is what its alias models are unpacked with.
PACKAGES = ("transformers==5.2.0", "kvpress==0.5.5", "nvidia-modelopt==0.47.0", "gguf>=0.10")
INSIDE_VARIABLE = "GEOSPARSE_PEERS_INSIDE"


def inside() -> bool:
    """Whether this process runs in the environment of the baselines."""
    return os.environ.get(INSIDE_VARIABLE) == "1"


def run_inside(arguments: list[str]) -> int:
    """Run Python with `arguments` in the environment; returns the exit code."""
    environment = os.environ | {INSIDE_VARIABLE: "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([str(build()), *arguments], env=environment, check=False).returncode


def build() -> Path:
    """The environment's Python; the environment is made where it is missing or of other packages.

    Raises:
        GeosparseError: pip failed.
    """
    python = ENVIRONMENT_FOLDER / "bin" / "python"
    packages = [f"torch=={_version_here('torch')}", *PACKAGES]
    stamp, wanted = ENVIRONMENT_FOLDER / "packages.sha256", hashlib.sha256(" ".join(packages).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"building {ENVIRONMENT_FOLDER}: {', '.join(packages)}", file=sys.stderr, flush=True)
    venv.create(ENVIRONMENT_FOLDER, with_pip=True, clear=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=False)
    if done.returncode:
        raise GeosparseError(
            f"pip could not install the baselines into {ENVIRONMENT_FOLDER}: see its message, then try again."
        )
    stamp.write_text(wanted)
    return python


def _version_here(package: str) -> str:
    """The version of a package in this environment, without what says for which device it was built."""
    from importlib import metadata

    return metadata.version(package).split("+")[0]
