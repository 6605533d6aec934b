"""How the operator learns that a chain needs a look: watches, the queue and the periodic look."""
