"""What the pages of the book share: the machine, the look of a figure, recorded results, the lab."""
