"""Whether one recipe is better than another: paired by row and crossed with seeds."""
