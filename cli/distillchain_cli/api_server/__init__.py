"""How a command reaches a cluster: kubeconfig, connection, reads, watches and writes."""
