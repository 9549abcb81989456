"""Files of published models: from a folder, a URL or the hub, checked before they are used."""
