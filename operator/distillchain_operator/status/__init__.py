"""What status and Events say of a chain. Pure; the command line uses it too."""
