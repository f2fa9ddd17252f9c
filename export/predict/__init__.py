"""ctr-predict: scoring the rows of files, as the server would."""
