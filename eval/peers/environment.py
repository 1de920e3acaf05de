"""The virtual environment of the peers, built on first use: they need an older transformers than geosparse does."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from geosparse.errors import GeosparseError

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("GEOSPARSE_PEERS", ROOT / ".venv" / "peers"))
# The kvpress release that is compared with pins this transformers.
PACKAGES = (
    "transformers==5.2.0",
    "kvpress==0.5.5",
    "lm-eval[hf,ruler]>=0.4.13",
    "matplotlib>=3.8",
    "nvidia-modelopt==0.47.0",
)
MARK = "GEOSPARSE_PEERS_INSIDE"


def inside() -> bool:
    """Whether this process runs in the environment of the peers."""
    return os.environ.get(MARK) == "1"


def run_inside(arguments: list[str]) -> int:
    """Run Python with `arguments` in the environment; returns the exit code."""
    python = build()
    environment = os.environ | {MARK: "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([str(python), *arguments], env=environment, check=False).returncode


def build() -> Path:
    """The environment's Python; the environment is made where it is missing or of other packages.

    Raises:
        GeosparseError: pip failed.
    """
    python = FOLDER / "bin" / "python"
    stamp, wanted = FOLDER / "packages.sha256", hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"building {FOLDER}: {', '.join(PACKAGES)}", file=sys.stderr, flush=True)
    venv.create(FOLDER, with_pip=True, clear=True)
    torch = [sys.executable, "-c", "import torch; print(torch.__version__.split('+')[0])"]
    version = subprocess.run(torch, capture_output=True, text=True, check=True).stdout.strip()
    for packages in ([f"torch=={version}"], [*PACKAGES, "--no-build-isolation", f"torch=={version}", str(ROOT)]):
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=False)
        if done.returncode:
            raise GeosparseError(f"pip could not install the peers ({' '.join(packages)}): see its message above.")
    stamp.write_text(wanted)
    return python
