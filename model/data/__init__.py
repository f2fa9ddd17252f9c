"""Converting raw logs to the arrays that training reads: readers, preparation, and a synthetic log."""
