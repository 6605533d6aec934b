"""Jobs and pods: how those of a stage are built, and how they are seen. Pure."""
