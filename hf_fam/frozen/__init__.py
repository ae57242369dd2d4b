"""Training of the head alone, on stored features of a frozen backbone."""
