"""Programs that write responses: a run directory with prompts in, responses out."""
