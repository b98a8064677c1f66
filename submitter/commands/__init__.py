"""The commands of `submitter`, one noun or verb per file. Each is a function that `submitter/cli.py` registers."""
