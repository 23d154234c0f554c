"""The verifier `code`: programs against tests, in a sandbox."""
