"""The command line `distillchain`: the same chain on one machine, and a look at it on a cluster."""
