"""`python -m geosparse.integrations.lm_eval`: lm-eval's command line, with the model type `geosparse`."""

from .model import register


def main() -> None:
    """lm-eval's own, after `register`."""
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


main()
