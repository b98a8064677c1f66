"""The commands beside `serve`, one file for each noun. They use the settings in force and the database directly."""
