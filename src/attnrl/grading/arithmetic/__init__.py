"""Values of expressions: exact, and numeric at several precisions."""
