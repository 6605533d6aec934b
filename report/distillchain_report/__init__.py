"""The report on a chain: what is in the store, told on one page. Pure but for reads of the store it is given."""
