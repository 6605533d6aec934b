"""The API server: connection, live reads, writes, leader election and readable namespaces."""
