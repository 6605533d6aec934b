"""Arguments and options: chain files, overrides, targets, access to a cluster, completion."""
