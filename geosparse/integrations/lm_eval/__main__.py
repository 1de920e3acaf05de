"""`python -m geosparse.integrations.lm_eval`: lm-eval's command line, with the model type `geosparse`."""


def main() -> None:
    """lm-eval's own; importing this package has registered the model type."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


main()
