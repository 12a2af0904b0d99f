"""A module that nothing may import: its name stands in spoiled inputs where classes are named."""

raise SystemExit("a name out of data was imported")
