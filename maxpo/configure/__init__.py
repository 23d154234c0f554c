"""Settings are read, checked and written here."""
