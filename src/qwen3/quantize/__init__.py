"""Models in fewer bits: methods that round, and the files that hold what they found."""
