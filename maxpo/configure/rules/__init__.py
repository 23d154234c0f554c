"""Which values and combinations of settings make sense, a file for each section."""
