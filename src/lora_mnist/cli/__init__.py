"""The layer between the shell and a command: Hydra's main, exit codes, the table of a sweep."""
