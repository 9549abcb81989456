"""Shows predictions to people: GIF, mp4, contact sheets and web pages."""
