"""What is wrong with a run, from its figures: rules, a file for each subject. Imports no torch."""
