"""What the commands that change a chain on a cluster do."""
