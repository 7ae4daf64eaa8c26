"""Reading configs and writing files."""
