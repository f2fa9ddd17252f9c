"""The online loop after serving: what became of the answers, as a log to train on."""
