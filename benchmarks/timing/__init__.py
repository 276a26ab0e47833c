"""What the command `benchmarks/speed.py` measures, and how."""
