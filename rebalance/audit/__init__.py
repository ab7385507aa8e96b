"""What is missing among the labels: suggestions, how sure they are, how many are missing, and data sets completed."""
