"""What tests share: real processes, servers and pictures."""
