"""What the commands that read a chain on a cluster show: status, logs, events."""
