"""What mkdocs does before it builds: pages of results are made by `.ci/docs`, and without them the rest is built."""

from pathlib import Path
from typing import Any

RESULTS = "results/index.html"


def on_config(config: Any) -> Any:
    """Leave the entry of the results out where they have not been drawn."""
    if not (Path(config["docs_dir"]) / RESULTS).exists():
        config["nav"] = [entry for entry in config["nav"] if RESULTS not in entry.values()]
    return config
