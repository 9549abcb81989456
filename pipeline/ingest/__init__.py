"""The ingest job: a plan of work units, the units, and the runners that do them."""
