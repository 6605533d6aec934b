"""What the operator knows between two looks at a chain. It spares requests; no truth is only here."""
