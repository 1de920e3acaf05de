"""The command `geosparse`."""
