"""The commands, one module for each or for a group of them. They parse options and print; most of the work is elsewhere."""
