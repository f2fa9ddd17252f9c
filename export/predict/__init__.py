"""ctr-predict: score the rows of files as the server would."""
