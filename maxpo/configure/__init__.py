"""Reading, checking and writing of settings."""
