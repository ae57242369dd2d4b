"""The command ``hf-fam``, one module a subcommand."""
