"""Studies: many short trainings that test the claims of a paper at small scale."""
