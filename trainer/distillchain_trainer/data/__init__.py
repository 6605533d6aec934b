"""Files and data sets as rows."""
