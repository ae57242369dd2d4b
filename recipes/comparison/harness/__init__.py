"""One protocol for every method: tasks, regimes (how a model is trained) and methods, each in a place of its own."""
