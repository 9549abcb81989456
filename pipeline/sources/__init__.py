"""Sources of episodes, one file a kind, behind one small protocol."""
