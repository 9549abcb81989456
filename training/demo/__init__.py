"""The demo: runs all stages on small data from a real simulator."""
