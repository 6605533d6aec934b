"""The command line `distillchain`: run a chain on this machine, and inspect and control chains on a cluster."""
