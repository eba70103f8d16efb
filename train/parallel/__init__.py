"""Several processes, one training run: ranks, what travels between them, and what each of them holds."""
