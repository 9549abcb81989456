"""The ingest job: plans work units and runs them on this machine or on a cluster."""
