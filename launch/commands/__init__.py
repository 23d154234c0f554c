"""The subcommands of `maxpo`, a file each."""
