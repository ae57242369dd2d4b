"""What every room needs for inputs of users: checks of numbers and paths, values as safe text, and secrets."""
