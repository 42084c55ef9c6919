"""Guards against answers of the right value without the work: copies of the problem."""
