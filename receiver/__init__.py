"""The service: receives, verifies, records, settles, polls, keeps and tells. `receiver serve` runs it."""
