"""Ray calls, waits, threads and network interfaces."""
