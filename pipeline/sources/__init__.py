"""Sources of episodes: recognises data sets and reads their files."""
