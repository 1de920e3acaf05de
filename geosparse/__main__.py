"""`python -m geosparse`."""

from .cli.main import main

raise SystemExit(main())
