"""The store: objects in S3 or a folder, verified reads and the conditional commit of a stage."""
