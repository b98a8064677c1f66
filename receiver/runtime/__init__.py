"""Infrastructure that knows no job: loops, logs, metrics, the server, files of the data directory."""
