"""The command line: `main.py` has the parser and exit statuses, each command is a module of its own."""
