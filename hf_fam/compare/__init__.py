"""Compare training methods on a user's own data, over several seeds."""
