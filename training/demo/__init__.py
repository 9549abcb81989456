"""The demo: the whole chain on small data from a real simulator."""
