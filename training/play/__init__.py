"""`ivideogpt-play`: a person drives a world model on a small local web page and sees frames appear."""
