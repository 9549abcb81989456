"""RLDS data sets, as Open X-Embodiment publishes them."""
