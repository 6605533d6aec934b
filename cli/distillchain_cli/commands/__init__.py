"""The commands, one file for each group. They parse options and print; the work is elsewhere."""
