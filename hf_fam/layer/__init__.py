"""Find a layer of a model, watch its forward pass, read its weight."""
