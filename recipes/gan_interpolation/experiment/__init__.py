"""What run.py is made of: networks, data, training, paths and their judge."""
