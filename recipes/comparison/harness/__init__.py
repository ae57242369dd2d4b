"""Tasks, models and plans of the study; `hf_fam.compare` makes the runs and decides."""
