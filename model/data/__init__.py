"""From a raw log to the arrays that training reads: readers, preparation, and a generated log."""
