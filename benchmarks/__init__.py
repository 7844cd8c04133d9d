"""Programs that measure; `python benchmarks/NAME.py --help` says what."""
