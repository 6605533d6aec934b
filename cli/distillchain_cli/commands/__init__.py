"""The commands. They parse options and print; most of the work is elsewhere."""
