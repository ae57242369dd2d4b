"""The study's first protocol: plans, records and tables of what is finished. Nothing here trains."""
