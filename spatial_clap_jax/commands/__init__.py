"""What each command of `spatial-clap` takes from its line, and which library call it is.

Heavy imports stand inside the commands, so that `--help` and mistakes answer at once.
"""
