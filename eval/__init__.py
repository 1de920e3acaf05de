"""Studies and measurements on top of geosparse; never imported by it."""
