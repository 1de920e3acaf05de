"""`python -m geosparse`."""

from .cli import main

raise SystemExit(main())
