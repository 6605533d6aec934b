"""Documents that operator, trainer and store exchange: work order, progress, answer, manifest."""
