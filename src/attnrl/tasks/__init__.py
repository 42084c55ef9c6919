"""Problems and how their answers are graded."""
