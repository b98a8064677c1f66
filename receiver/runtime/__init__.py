"""What any service needs and no job: loops, logs, metrics, the server, files of the data directory."""
